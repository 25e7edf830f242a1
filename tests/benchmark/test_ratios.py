"""Networks against each other: like with like only."""

import pytest

from snapvideo_jax.benchmark import ratios
from tests.benchmark.example_rows import row

FIT = row("fit_500m", 100.0, 80.0, 120.0)
UNET = row("unet_284m", 300.0, 280.0, 480.0)


def test_a_ratio_is_the_rivals_time_over_that_of_the_earlier_one_by_medians():
    (ratio,) = ratios.ratios([FIT, UNET])
    assert (ratio.config, ratio.rival, ratio.batch) == ("fit_500m", "unet_284m", 8)
    assert ratio.ratio == 3.0
    (inverse,) = ratios.ratios([UNET, FIT])
    assert inverse.config == "unet_284m" and inverse.ratio == pytest.approx(1 / 3)


def test_the_rivals_parameters_and_flops_stand_beside_its_time():
    """So that it is seen whether two are compared at equal size, at equal work, or at neither."""
    large = row("dit_500m", 300.0, parameters=2 * FIT.parameters, model_flops=3 * FIT.model_flops)
    (ratio,) = ratios.ratios([FIT, large])
    assert (ratio.parameters, ratio.flops) == (2.0, 3.0)
    (ratio,) = ratios.ratios([FIT, row("dit_500m", 300.0, model_flops=None)])
    assert (ratio.parameters, ratio.flops) == (1.0, None)


def test_its_spread_is_that_of_rounds_if_they_were_taken_in_turns():
    (ratio,) = ratios.ratios([FIT, UNET])
    assert (ratio.ratio_min, ratio.ratio_max) == (3.0, 4.0)  # 300/100, 280/80, 480/120
    assert ratio.interleaved


def test_else_it_is_the_fastest_of_one_against_the_slowest_of_the_other():
    apart = row("fit_500m", 100.0, 80.0, 120.0, interleaved=False)
    (ratio,) = ratios.ratios([apart, UNET])
    assert (ratio.ratio_min, ratio.ratio_max) == (280 / 120, 480 / 80)
    assert ratio.ratio == 3.0 and not ratio.interleaved


@pytest.mark.parametrize(
    "field, value",
    [
        ("kind", "predicted"),
        ("mode", "infer"),
        ("device", "TPU v5 lite"),
        ("devices", 2),
        ("dtype", "float32"),
        ("batch", 16),
        ("video", (16, 288, 512)),
    ],
)
def test_rows_that_differ_in_more_than_the_network_make_no_ratio(field, value):
    other = row("unet_284m", 300.0, **{field: value})
    assert ratios.ratios([FIT, other]) == []
    with pytest.raises(ValueError, match="fit_500m and unet_284m were not timed alike"):
        ratios.ratio(FIT, other)


def test_each_kind_has_ratios_of_its_own():
    predicted = [row("fit_500m", 50.0, kind="predicted"), row("unet_284m", 200.0, kind="predicted")]
    both = ratios.ratios([FIT, predicted[0], UNET, predicted[1]])
    assert [(one.kind, one.ratio) for one in both] == [("measured", 3.0), ("predicted", 4.0)]


def test_what_ran_out_of_memory_is_compared_with_nothing():
    assert ratios.ratios([FIT, row("unet_284m")]) == []
    assert ratios.ratios([row("fit_500m"), UNET]) == []


@pytest.mark.parametrize("mode, times", [("train", 3.31), ("infer", 4.49)])
def test_the_papers_ratio_stands_beside_that_of_its_models(mode, times):
    named = row("fit_500m:fsdp", 100.0, mode=mode), row("unet_284m", 300.0, mode=mode)
    (ratio,) = ratios.ratios(named)
    assert ratio.paper_ratio == pytest.approx(times, abs=0.005)
    (ratio,) = ratios.ratios([row("fit_mine", 100.0, mode=mode), named[1]])
    assert ratio.paper_ratio is None and ratio.ratio == 3.0


def test_every_network_meets_every_later_one():
    rows = [row(name, 1.0) for name in ("fit_500m", "unet_85m", "dit_500m")]
    pairs = [(one.config, one.rival) for one in ratios.ratios(rows)]
    later = ("fit_500m", "unet_85m"), ("fit_500m", "dit_500m"), ("unet_85m", "dit_500m")
    assert pairs == [*later]
