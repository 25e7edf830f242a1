"""Which part of a global batch a process makes, and how the parts become one global array.

A process makes what its devices hold: of the examples its rows, and where videos are split over
group, the box of frames, rows and columns of pixels that its devices share.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from snapvideo_jax.parallel import mesh as meshes


class Part(NamedTuple):
    """rows: examples of the global batch, rising. box: of each example, along its other axes."""

    rows: tuple[int, ...]
    box: tuple[slice, ...]


def part(whole: jax.ShapeDtypeStruct) -> Part:
    """This process's part of an array that carries its sharding: the least that holds all pieces
    of its devices.
    """
    return _part(whole.sharding, whole.shape)


@functools.lru_cache
def _part(sharding: Any, shape: tuple[int, ...]) -> Part:
    """Each step of training asks for the same ones."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    pieces = [
        [s.indices(size)[:2] for s, size in zip(index, shape, strict=True)] for index in indices
    ]
    rows = {row for piece in pieces for row in range(*piece[0])}
    spans = zip(*[piece[1:] for piece in pieces], strict=True)
    box = tuple(slice(min(a for a, _ in span), max(b for _, b in span)) for span in spans)
    return Part(tuple(sorted(rows)), box)


def join(wholes: Any, parts: Any) -> Any:
    """Trees of the global arrays `wholes`, of which each process gives its `part`."""
    return jax.tree.map(_join, wholes, parts)


class Share(NamedTuple):
    """Which of the `count` different sets of examples this process's devices hold.

    Processes share one where a video is split over their devices; one of them is its `owner`.
    """

    index: int
    count: int
    owner: bool
    rows: int  # of each batch of `ways` examples


def share(mesh: Mesh) -> Share:
    """This process's share of every batch on `mesh`."""
    ways = meshes.ways(mesh, meshes.BATCH_AXES)
    held: dict[int, set[int]] = {}
    places = meshes.batch_sharding(mesh).devices_indices_map((ways,))
    for device, (index,) in places.items():
        held.setdefault(device.process_index, set()).update(range(*index.indices(ways)))
    sets = sorted({tuple(sorted(rows)) for rows in held.values()})
    mine = tuple(sorted(held[jax.process_index()]))
    owner = min(process for process, rows in held.items() if tuple(sorted(rows)) == mine)
    return Share(sets.index(mine), len(sets), owner == jax.process_index(), len(mine))


def _join(whole: jax.ShapeDtypeStruct, mine: Shaped[np.ndarray, "..."]) -> jax.Array:
    rows, box = part(whole)

    def piece(index: Any) -> np.ndarray:  # a slice for each axis
        (start, stop, _), *rest = (
            s.indices(size) for s, size in zip(index, whole.shape, strict=True)
        )
        first = rows.index(start)
        inside = [slice(a - b.start, c - b.start) for (a, c, _), b in zip(rest, box, strict=True)]
        return mine[first : first + stop - start, *inside]

    return jax.make_array_from_callback(whole.shape, whole.sharding, piece)
