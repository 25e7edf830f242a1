"""Which part of a global batch a process makes, and how the parts become one global array.

A process makes what its devices hold: of the examples its rows, and where videos are split over
group, the box of frames, rows and columns of pixels that its devices share.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Shaped


class Part(NamedTuple):
    """rows: examples of the global batch, rising. box: of each example, along its other axes."""

    rows: tuple[int, ...]
    box: tuple[slice, ...]


def part(sharding: NamedSharding, shape: tuple[int, ...]) -> Part:
    """This process's part of an array of `shape`: the least that holds all its devices' pieces."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    pieces = [
        [s.indices(size)[:2] for s, size in zip(index, shape, strict=True)] for index in indices
    ]
    rows = {row for piece in pieces for row in range(*piece[0])}
    spans = zip(*[piece[1:] for piece in pieces], strict=True)
    box = tuple(slice(min(a for a, _ in span), max(b for _, b in span)) for span in spans)
    return Part(tuple(sorted(rows)), box)


def join(
    sharding: NamedSharding, shape: tuple[int, ...], mine: Shaped[np.ndarray, "..."]
) -> jax.Array:
    """The global array of `shape`, of which each process gives its `part`."""
    rows, box = part(sharding, shape)

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        (start, stop, _), *rest = (s.indices(size) for s, size in zip(index, shape, strict=True))
        first = rows.index(start)
        inside = [slice(a - b.start, c - b.start) for (a, c, _), b in zip(rest, box, strict=True)]
        return mine[first : first + stop - start, *inside]

    return jax.make_array_from_callback(shape, sharding, piece)
