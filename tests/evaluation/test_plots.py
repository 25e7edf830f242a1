"""The plot of a sweep shows every score of every factor."""

import io

import numpy as np
from PIL import Image

from snapvideo_jax.evaluation import plots

FACTORS = ("color", "speed", "direction", "shape", "all")


def scores(rate):
    return {factor: rate + 0.01 * i for i, factor in enumerate(FACTORS)}


def point(steps, guidance, rate):
    oracle = scores(rate) | {"held_out": scores(rate / 2)}
    return {"steps": steps, "guidance": guidance, "oracle": oracle}


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


def test_a_plot_is_a_png_that_can_be_read():
    with Image.open(io.BytesIO(plots.png(GUIDANCE))) as picture:
        assert picture.format == "PNG" and picture.width > 400
        assert np.asarray(picture.convert("L")).std() > 5
