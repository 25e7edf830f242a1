"""How long a program compiled for TPUs takes, from what its compiler says and the data sheets.

Two figures, far apart enough to hold what is not known. `slow` adds up the compiler's estimate of
cycles of every instruction, which is above what large products take and far above it for small
element-wise work; kernels, to which it gives none, by our count of their bodies, one unit waiting
for the other; and all exchanges that the program waits for. `fast` is the least that the data sheet
allows: multiplications at peak, or memory or links along all axes of the torus at theirs, whichever
takes longest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from snapvideo_jax.parallel.chips import Chip
from snapvideo_jax.planner import cost, hlo


class Seconds(NamedTuple):
    """The time of one call of a program, and its parts.

    compute: by the compiler's cycles. kernels: by our count of their bodies. waiting: for exchanges
    that stop the program. overlapped: exchanges during which it goes on. fast, slow: the whole
    call, at best and at worst.
    """

    compute: float
    kernels: float
    waiting: float
    overlapped: float
    fast: float
    slow: float


def seconds(
    chip: Chip,
    instructions: Sequence[hlo.Instruction],
    kernels: Sequence[cost.Kernel],
    collectives: Sequence[hlo.Collective],
    num_chips: int,
    flops: int,
    least_bytes: int,
) -> Seconds:
    """Predicts the time of one call.

    kernels, flops: summed over all chips. least_bytes: what a chip reads or writes of its memory at
    least once.
    """
    compute = sum(instruction.cycles for instruction in instructions) / chip.clock
    inside_kernels = sum(kernel_seconds(kernel, chip) for kernel in kernels) / num_chips
    waiting, overlapped = (
        sum(
            collective.count * exchange_seconds(collective, chip, num_chips)
            for collective in collectives
            if collective.overlaps == overlaps
        )
        for overlaps in (False, True)
    )
    links = (waiting + overlapped) / chip.axes
    floor = max(flops / num_chips / chip.peak, least_bytes / chip.hbm, links)
    slow = max(compute + inside_kernels, overlapped) + waiting
    return Seconds(
        compute=compute,
        kernels=inside_kernels,
        waiting=waiting,
        overlapped=overlapped,
        fast=min(floor, slow),
        slow=slow,
    )


def kernel_seconds(kernel: cost.Kernel, chip: Chip) -> float:
    """Predicts all runs of a kernel, one after the other on one chip: products, then the rest."""
    return (kernel.rows / chip.arrays + kernel.elements / chip.vector) / chip.clock


def exchange_seconds(collective: hlo.Collective, chip: Chip, num_chips: int) -> float:
    """Predicts one run of a collective, around a ring of its devices along one axis of the torus.

    It counts the bytes that pass a chip's two links of that axis: all that is gathered or summed,
    twice for an all-reduce; blocks of an all-to-all travel a quarter of the ring on average.
    """
    n = len(collective.devices) or num_chips
    passes = {"all-reduce": 2 * (n - 1) / n, "all-to-all": n / 4, "collective-permute": 2}
    return collective.bytes * passes.get(collective.kind, (n - 1) / n) / chip.link


def axes(devices: Sequence[int], shape: dict[str, int]) -> tuple[str, ...]:
    """Returns the axes of a mesh of this shape along which `devices` exchange.

    devices: numbers in the mesh; an empty list means all of them, as in a program's text.
    """
    if not devices:
        return tuple(axis for axis, size in shape.items() if size > 1)
    places = np.array(np.unravel_index(np.array(devices), tuple(shape.values())))
    return tuple(axis for axis, along in zip(shape, places, strict=True) if np.ptp(along))
