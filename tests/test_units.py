"""Numbers as people read them: three digits, and no toy is rounded to nothing."""

import pytest

from snapvideo_jax import units


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (99_949, "99.9 kB"), (999_600, "1.00 MB")]
    + [(15_684_047_040, "15.7 GB"), (5 * 10**15, "5000 TB")],
)
def test_bytes_have_three_digits(size, text):
    assert units.size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (5.61e-9, "5.61 ns"), (6.3246e-5, "63.2 us"), (0.001, "1.00 ms")]
    + [(0.0125, "12.5 ms"), (0.3696, "370 ms"), (1, "1.00 s"), (22.63, "22.6 s")]
    + [(1234, "1,234 s"), (1e-12, "0.00100 ns")],
)
def test_times_have_a_unit_that_suits_their_length(seconds, text):
    assert units.time_text(seconds) == text


def test_one_thing_is_no_plural():
    texts = [units.count_text(number, "video") for number in (0, 1, 2000)]
    assert texts == ["0 videos", "1 video", "2,000 videos"]


@pytest.mark.parametrize(
    ("flops", "text"),
    [(512, "512 FLOP"), (4_423_680, "4.42 MFLOP"), (1_146_486_784, "1.15 GFLOP")]
    + [(22.5e12, "22.5 TFLOP"), (999_600, "1.00 MFLOP"), (3.2e19, "32,000 PFLOP")],
)
def test_operations_have_a_unit_that_suits_their_number(flops, text):
    assert units.flops_text(flops) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.00286, "0.29%"), (0.0906, "9.1%"), (0.5, "50%"), (1, "100%")]
)
def test_small_shares_have_two_digits_too(share, text):
    assert units.percent_text(share) == text


def test_durations_read_well():
    seen = [units.duration_text(s) for s in (0.4, 59, 61, 3599, 3600, 360_000)]
    assert seen == ["0s", "59s", "1m01s", "59m59s", "1h00m", "100h00m"]
