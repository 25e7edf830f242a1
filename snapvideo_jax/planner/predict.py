"""How long a program compiled for TPUs takes, from what its compiler says and the data sheets.

Two figures, far apart enough to hold what is not known. `slow` adds up the compiler's estimate of
cycles of every instruction, which is above what large products take and far above it for small
element-wise work; kernels, to which it gives none, by our count of their bodies, one unit waiting
for the other; and all exchanges that the cores wait for. `fast` is the least that the data sheet
allows: multiplications at peak, or memory or links along all axes of the torus at theirs, whichever
takes longest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snapvideo_jax.parallel.chips import Chip
from snapvideo_jax.planner import cost, hlo


class Seconds(NamedTuple):
    """Of one call of a program. cores and kernels: of their work. waits: for exchanges that the
    program cannot go on beside; beside: of those that it can. fast, slow: of all, at best and at
    worst.
    """

    cores: float
    kernels: float
    waits: float
    beside: float
    fast: float
    slow: float


def seconds(
    chip: Chip,
    works: Sequence[hlo.Work],
    kernels: Sequence[cost.Kernel],
    collectives: Sequence[hlo.Collective],
    num_chips: int,
    flops: int,
    least_bytes: int,
) -> Seconds:
    """The time of one call.

    kernels and flops: over all chips together. least_bytes: of a chip's memory that are read or
    written at least once.
    """
    cores = sum(work.cycles for work in works) / chip.clock
    inside = sum(kernel_seconds(kernel, chip) for kernel in kernels) / num_chips
    sent = {apart: _sent(collectives, chip, num_chips, apart) for apart in (False, True)}
    links = sum(sent.values()) / chip.axes
    floor = max(flops / num_chips / chip.peak, least_bytes / chip.hbm, links)
    slow = max(cores + inside, sent[True]) + sent[False]
    return Seconds(cores, inside, sent[False], sent[True], min(floor, slow), slow)


def kernel_seconds(kernel: cost.Kernel, chip: Chip) -> float:
    """Of all runs of a kernel on one chip after the other: products, then element-wise work."""
    return (kernel.rows / chip.arrays + kernel.elements / chip.vector) / chip.clock


def _sent(collectives: Sequence[hlo.Collective], chip: Chip, num_chips: int, apart: bool) -> float:
    some = [c for c in collectives if c.apart == apart]
    return sum(c.count * exchange(c, chip, num_chips) for c in some)


def exchange(collective: hlo.Collective, chip: Chip, num_chips: int) -> float:
    """Seconds of one run, around a ring of its devices along one axis of the torus.

    The bytes that pass a chip's two links of that axis: all that is gathered or summed, twice for
    an all-reduce; of an all-to-all, blocks travel a quarter of the ring on average.
    """
    n = len(collective.devices) or num_chips
    passes = {"all-reduce": 2 * (n - 1) / n, "all-to-all": n / 4, "collective-permute": 2}
    return collective.bytes * passes.get(collective.kind, (n - 1) / n) / chip.link


def axes(devices: Sequence[int], shape: dict[str, int]) -> tuple[str, ...]:
    """The axes of a mesh of this shape along which devices that exchange lie; () means all."""
    if not devices:
        return tuple(axis for axis, size in shape.items() if size > 1)
    places = np.array(np.unravel_index(np.array(devices), tuple(shape.values())))
    return tuple(axis for axis, along in zip(shape, places, strict=True) if np.ptp(along))
