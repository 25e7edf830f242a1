"""What follows from the times of a row."""

import json

import pytest

from snapvideo_jax.benchmark import rows
from tests.benchmark.example_rows import row


def test_the_median_of_the_rounds_counts_and_a_slow_one_does_not():
    tree = rows.tree(row("fit_500m", 100.0, 90.0, 5000.0))
    assert (tree["ms_per_step"], tree["ms_per_step_min"], tree["ms_per_step_max"]) == (
        100,
        90,
        5000,
    )
    assert tree["ms_per_video"] == 12.5 and tree["videos_per_second"] == pytest.approx(80)


def test_a_video_takes_the_time_of_one_device_however_many_there_are():
    tree = rows.tree(row("fit_500m", 100.0, devices=4, batch=32))
    assert tree["ms_per_video"] == 12.5 and tree["videos_per_second"] == pytest.approx(320)


def test_what_is_computed_twice_is_work_of_the_hardware_but_not_of_the_model():
    tree = rows.tree(row("fit_500m", 100.0))  # 10 and 12 TFLOP in 0.1 s, of a peak of 312 TFLOP/s
    assert tree["tflops_per_second"] == pytest.approx(100)
    assert tree["mfu"] == pytest.approx(100 / 312)
    assert tree["hardware_utilization"] == pytest.approx(120 / 312)
    assert rows.tree(row("fit_500m", 100.0, devices=2))["mfu"] == pytest.approx(50 / 312)


def test_what_is_not_known_is_null_and_not_zero():
    tree = rows.tree(row("fit_500m", 100.0, peak_flops=None))
    assert tree["mfu"] is None and tree["hardware_utilization"] is None
    assert tree["tflops_per_second"] == pytest.approx(100)


def test_a_row_without_memory_says_so_and_has_no_times():
    tree = rows.tree(row("fit_500m"))
    assert tree["out_of_memory"] is True
    times = "ms_per_video", "ms_per_step", "ms_per_step_min", "ms_per_step_max"
    unknown = [tree[key] for key in (*times, "videos_per_second", "tflops_per_second", "mfu")]
    assert unknown == [None] * 7
    assert json.loads(json.dumps(tree)) == tree
