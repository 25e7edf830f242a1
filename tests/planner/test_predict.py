"""Seconds from cycles, counts and data sheets, on a chip whose numbers are round."""

import pytest

from snapvideo_jax.parallel.chips import Chip
from snapvideo_jax.planner import predict
from snapvideo_jax.planner.cost import Kernel
from snapvideo_jax.planner.hlo import Collective, Instruction

# 2 matrix units of 10 x 10 and 4e9 FLOP/s: 1e7 cycles a second.
CHIP = Chip("toy", peak=4e9, hbm=1e6, link=1000.0, arrays=2, side=10, vector=50, axes=2)
FOUR = (0, 1, 2, 3)


def sent(size, kind="all-gather", count=1, devices=FOUR, overlaps=False):
    return Collective(kind, count, size, (), "", devices, overlaps)


def seconds(cycles=0, kernels=(), collectives=(), chips=4, flops=0, least=0):
    return predict.seconds(
        CHIP,
        instructions=[
            Instruction("fusion", 1, part, "") for part in (cycles // 4, cycles - cycles // 4)
        ],
        kernels=kernels,
        collectives=collectives,
        num_chips=chips,
        flops=flops,
        least_bytes=least,
    )


def test_cycles_of_all_instructions_are_divided_by_the_clock():
    prediction = seconds(cycles=30_000_000)
    assert prediction.compute == prediction.slow == pytest.approx(3)


def test_exchanges_add_to_compute_unless_they_overlap_with_it():
    # 1000 bytes over a ring of 4 pass 750 of them: 0.75 s.
    serial = seconds(cycles=10_000_000, collectives=[sent(1000, count=2)])
    assert (serial.waiting, serial.overlapped, serial.slow) == pytest.approx((1.5, 0, 1 + 1.5))
    hidden = seconds(cycles=10_000_000, collectives=[sent(1000, overlaps=True)])
    assert (hidden.waiting, hidden.overlapped, hidden.slow) == pytest.approx((0, 0.75, 1))
    both = [sent(4000, overlaps=True), sent(1000)]
    assert seconds(cycles=10_000_000, collectives=both).slow == pytest.approx(3 + 0.75)


@pytest.mark.parametrize(
    ("bound", "fast"),
    [
        (dict(flops=32_000_000_000), 2),  # over 4 chips of 4e9 a second
        (dict(least=3_000_000), 3),  # of each chip, at 1e6 a second
        (dict(collectives=[sent(4000), sent(2000, overlaps=True)]), (3 + 1.5) / 2),  # both axes
    ],
    ids=["products", "memory", "links"],
)
def test_the_fast_end_is_the_slowest_of_products_memory_and_links(bound, fast):
    others = dict(flops=4_000_000_000, least=100_000, collectives=[sent(100)])
    prediction = seconds(**(dict(cycles=90_000_000) | others | bound))
    assert prediction.fast == pytest.approx(fast)
    assert prediction.slow >= 9


def test_the_fast_end_is_never_above_the_slow_one():
    prediction = seconds(cycles=10_000_000, flops=32_000_000_000)
    assert prediction.fast == prediction.slow == pytest.approx(1)


def test_a_kernel_waits_for_its_products_and_then_for_its_elements():
    # 4e7 rows into 2 units and 5e8 elements, 50 a cycle: 2e7 + 1e7 cycles.
    kernel = Kernel("attend", runs=7, rows=40_000_000, elements=500_000_000)
    assert predict.kernel_seconds(kernel, CHIP) == pytest.approx(3)
    prediction = seconds(cycles=10_000_000, kernels=[kernel, kernel], chips=4)
    assert prediction.kernels == pytest.approx(2 * 3 / 4)  # it counts the work of all four chips
    assert prediction.slow == pytest.approx(1 + 1.5)


@pytest.mark.parametrize(
    ("kind", "n", "share"),
    [
        ("all-gather", 2, 1 / 2),
        ("all-gather", 4, 3 / 4),
        ("reduce-scatter", 8, 7 / 8),
        ("all-reduce", 2, 1),
        ("all-reduce", 8, 7 / 4),
        ("all-to-all", 4, 1),
        ("all-to-all", 16, 4),
        ("collective-permute", 2, 2),
        ("collective-permute", 8, 2),
    ],
)
def test_what_passes_a_chips_links_in_a_ring_of_n(kind, n, share):
    for devices, chips in ((tuple(range(n)), 64), ((), n)):  # listed, or all that there are
        taken = predict.exchange_seconds(sent(500, kind, 9, devices), CHIP, chips)
        assert taken == pytest.approx(500 * share / 1000)


MESH = dict(data=2, fsdp=3, group=1, tensor=4)  # number = 12 data + 4 fsdp + tensor


@pytest.mark.parametrize(
    ("devices", "along"),
    [
        ((0, 1, 2, 3), ("tensor",)),
        ((5, 7), ("tensor",)),
        ((1, 5, 9), ("fsdp",)),
        ((2, 14), ("data",)),
        ((0, 4, 8, 12, 16, 20), ("data", "fsdp")),
        ((3, 12), ("data", "tensor")),
        (tuple(range(24)), ("data", "fsdp", "tensor")),
        ((), ("data", "fsdp", "tensor")),
    ],
)
def test_devices_that_differ_along_an_axis_exchange_along_it(devices, along):
    assert predict.axes(devices, MESH) == along
