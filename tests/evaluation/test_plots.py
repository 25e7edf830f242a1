"""The plot of a sweep shows every score of every factor."""

import io

import numpy as np
from PIL import Image

from snapvideo_jax.evaluation import plots

FACTORS = ("color", "speed", "direction", "shape", "all")


def scores(rate):
    return {factor: rate + 0.01 * i for i, factor in enumerate(FACTORS)}


def point(steps, guidance, rate, solver="heun", high=1e6, evaluations=1, seconds=None):
    return {
        "steps": steps,
        "guidance": guidance,
        "solver": solver,
        "guidance_sigma_min": 0.0,
        "guidance_sigma_max": high,
        "evaluations": evaluations,
        "seconds": seconds,
        "oracle": scores(rate) | {"held_out": scores(rate / 2)},
    }


STEPS = [point(32, 1.0, 0.6), point(8, 1.0, 0.2), point(16, 1.0, 0.4)]
GUIDANCE = [point(8, w, 0.1 + w / 10) for w in (0.0, 0.5, 4.0)]


def lines(axes):
    """Returns the lines that hold scores; the others are the legend's."""
    return [line for line in axes.lines if len(line.get_xdata())]


def test_each_factor_has_a_solid_line_of_what_was_seen_and_a_dashed_one_of_what_was_held_out():
    (axes,) = plots.figure(STEPS).axes
    curves = lines(axes)
    assert len(curves) == 2 * len(FACTORS)
    for seen, held_out, factor in zip(curves[::2], curves[1::2], FACTORS, strict=True):
        assert (seen.get_label(), seen.get_linestyle()) == (factor, "-")
        assert held_out.get_linestyle() == "--" and held_out.get_color() == seen.get_color()
        offset = 0.01 * FACTORS.index(factor)
        assert list(seen.get_xdata()) == list(held_out.get_xdata()) == [8, 16, 32]
        np.testing.assert_allclose(seen.get_ydata(), np.array([0.2, 0.4, 0.6]) + offset)
        np.testing.assert_allclose(held_out.get_ydata(), np.array([0.1, 0.2, 0.3]) + offset)


def test_steps_stand_on_an_axis_of_powers_of_two_and_weights_on_an_even_one():
    (axes,) = plots.figure(STEPS).axes
    assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "16", "32"]
    (axes,) = plots.figure(GUIDANCE).axes
    assert axes.get_xscale() == "linear"
    assert list(lines(axes)[0].get_xdata()) == [0.0, 0.5, 4.0]


def test_with_both_swept_each_weight_has_its_own_axes():
    points = [point(steps, w, 0.1) for steps in (8, 16) for w in (0.0, 2.0)]
    figure = plots.figure(points)
    assert [axes.get_title() for axes in figure.axes] == [
        "guidance weight w: 0",
        "guidance weight w: 2",
    ]
    assert all(list(lines(axes)[0].get_xdata()) == [8, 16] for axes in figure.axes)


HEUN = [point(N, 1.0, 0.1 * N, "heun", 1e6, 4 * N - 2, N / 4) for N in (4, 2)]
FAST = [point(N, 1.0, 0.1 * N, "dpmpp_2m", 9.0, N + 1, N / 8) for N in (4, 2)]


def test_several_solvers_and_intervals_are_drawn_over_evaluations_and_seconds():
    figure = plots.figure([*HEUN, *FAST])
    assert [axes.get_xlabel() for axes in figure.axes] == list(plots.COSTS.values())
    for axes, costs in zip(figure.axes, (((6, 14), (3, 5)), ((0.5, 1), (0.25, 0.5))), strict=True):
        heun, heun_held_out, fast, fast_held_out = lines(axes)
        assert heun.get_label() == "Heun, w 1"
        assert fast.get_label() == "DPM-Solver++(2M), w 1 up to sigma 9"
        assert fast.get_color() == fast_held_out.get_color() != heun.get_color()
        assert (tuple(heun.get_xdata()), tuple(fast.get_xdata())) == costs
        np.testing.assert_allclose(heun.get_ydata(), [0.24, 0.44])
        np.testing.assert_allclose(heun_held_out.get_ydata(), [0.14, 0.24])


def test_seconds_that_were_not_measured_have_no_axes():
    points = [each | {"seconds": None} for each in [*HEUN, *FAST]]
    assert len(plots.figure(points).axes) == 1


def test_a_plot_is_a_png_that_can_be_read():
    with Image.open(io.BytesIO(plots.png(GUIDANCE))) as picture:
        assert picture.format == "PNG" and picture.width > 400
        assert np.asarray(picture.convert("L")).std() > 5
