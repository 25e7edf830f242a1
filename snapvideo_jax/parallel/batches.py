"""Which part of a global batch a process makes, and how the parts become one global array.

A process makes what its devices hold: its rows of the batch and, where videos are split over group,
the box of frames, rows and columns of pixels that its devices cover.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from snapvideo_jax.parallel import mesh as meshes


class Part(NamedTuple):
    """The part of a global array that one process makes.

    rows: of the global batch, in rising order. box: of each example, a slice of every other axis.
    """

    rows: tuple[int, ...]
    box: tuple[slice, ...]


def part(whole: jax.ShapeDtypeStruct) -> Part:
    """Returns this process's part of an array that carries its sharding.

    It is the smallest part that covers the pieces of all devices of the process.
    """
    return _part(whole.sharding, whole.shape)


@functools.lru_cache  # every training step needs the same parts
def _part(sharding: Any, shape: tuple[int, ...]) -> Part:
    indices = sharding.addressable_devices_indices_map(shape).values()
    pieces = [
        [s.indices(size)[:2] for s, size in zip(index, shape, strict=True)] for index in indices
    ]
    rows = {row for piece in pieces for row in range(*piece[0])}
    spans = zip(*[piece[1:] for piece in pieces], strict=True)
    box = tuple(slice(min(a for a, _ in span), max(b for _, b in span)) for span in spans)
    return Part(tuple(sorted(rows)), box)


def join(wholes: Any, parts: Any) -> Any:
    """Returns global arrays, laid out as the tree `wholes` says, from each process's parts."""
    return jax.tree.map(_join, wholes, parts)


class Shard(NamedTuple):
    """The set of examples, one of `count`, that this process's devices hold.

    Several processes hold the same set where a video is split over their devices. One of them is
    its `owner`.
    """

    index: int
    count: int
    owner: bool
    rows: int  # of each batch of `ways` examples


def shard(mesh: Mesh) -> Shard:
    """Returns this process's shard of every batch on `mesh`."""
    ways, process = meshes.ways(mesh, meshes.BATCH_AXES), jax.process_index()
    rows_of: dict[int, set[int]] = {}  # process -> its rows
    indices = meshes.batch_sharding(mesh).devices_indices_map((ways,))
    for device, (span,) in indices.items():
        rows_of.setdefault(device.process_index, set()).update(range(*span.indices(ways)))
    sets = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    rows = rows_of[process]
    owner = min(other for other, other_rows in rows_of.items() if other_rows == rows)
    index = sets.index(tuple(sorted(rows)))
    return Shard(index=index, count=len(sets), owner=owner == process, rows=len(rows))


def _join(whole: jax.ShapeDtypeStruct, local: Shaped[np.ndarray, "..."]) -> jax.Array:
    rows, box = part(whole)

    def piece(index: Any) -> np.ndarray:  # a slice for each axis
        (start, stop, _), *rest = (
            s.indices(size) for s, size in zip(index, whole.shape, strict=True)
        )
        first = rows.index(start)
        inside = [slice(a - b.start, c - b.start) for (a, c, _), b in zip(rest, box, strict=True)]
        return local[first : first + stop - start, *inside]

    return jax.make_array_from_callback(whole.shape, whole.sharding, piece)
