"""The lines that a run shows."""

import pytest

from snapvideo_jax.training.progress import ADVICE, Progress, Speed


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_line_says_step_loss_rate_time_left_and_waiting():
    clock, lines, waits = Clock(), [], [7.0]
    shown = Progress(0, 100, 32, 5.0, lines.append, clock, waited=lambda: sum(waits))
    clock.now = 60.0
    assert shown.step(1, 2.0) == {}
    clock.now += 4.0
    waits.append(1.0)
    assert shown.step(5, 1.5) == {}
    clock.now += 4.0
    rates = shown.step(9, 0.5)
    assert rates == {"videos_per_second": 32.0, "data_wait": 1 / 8}
    assert lines == [
        "first step after 1m00s: loss 2.0000",
        "step   9/100  loss 1.0000  32.0 videos/s  ETA 1m31s  waiting for data 12 %",
        ADVICE,
    ]
    clock.now += 5.0
    waits.append(5.0)
    shown.step(10, 0.5)
    assert len(lines) == 4 and ADVICE not in lines[3]  # it is said only the first time


def test_samples_are_no_part_of_the_rates_nor_of_the_time_left():
    clock, lines, drawn = Clock(), [], [2.0]
    shown = Progress(0, 100, 32, 5.0, lines.append, clock, drawn=lambda: sum(drawn))
    shown.step(1, 2.0)
    clock.now += 38.0
    drawn.append(30.0)
    assert shown.step(9, 0.5)["videos_per_second"] == 32.0
    assert "ETA 1m31s" in lines[-1]


@pytest.mark.parametrize(
    ("peak", "says"),
    [(100e12, "  25.0 TFLOP/s a device, MFU 25.0 %"), (0, "  25.0 TFLOP/s a device")],
)
def test_the_speed_of_known_devices_is_in_the_line_and_the_rates(peak, says):
    clock, lines, counted = Clock(), [], []

    def count():
        counted.append(True)
        return Speed(flops=50e12, peak=peak)

    shown = Progress(0, 100, 32, 5.0, lines.append, clock, speed=count)
    assert not counted  # it takes seconds, for which the first step does not wait
    shown.step(1, 2.0)
    clock.now = 8.0
    rates = shown.step(5, 1.5)
    assert lines[-1].endswith(f"waiting for data 0 %{says}")
    assert rates["tflops_per_device"] == 25 and rates.get("mfu") == (0.25 if peak else None)


def test_the_last_step_is_always_reported():
    lines = []
    shown = Progress(7, 9, 4, 1e9, lines.append, Clock())
    shown.step(8, 1.0)
    shown.step(9, 1.0)
    assert lines[-1].startswith("step 9/9")
