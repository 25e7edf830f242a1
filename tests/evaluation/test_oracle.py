"""The oracle on rendered, damaged and wrong videos: rates, gates and intervals."""

import dataclasses
import math
import random
import time

import numpy as np
import pytest

from snapvideo_jax.data import shapes
from snapvideo_jax.evaluation import oracle

DIRECTIONS = ("left", "right", "up", "down")
TINY = shapes.World(
    num_frames=8,
    height=16,
    width=16,
    radius=2.8,
    shapes=("circle", "square", "triangle"),
    colors=("red", "green", "blue", "yellow"),
    directions=DIRECTIONS,
    speeds=(("slowly", 4.0), ("quickly", 8.0)),
    frame_rates=(8.0, 12.0),
)
FAST = (("slowly", 8.0), ("quickly", 16.0))
WORLDS = {
    "4x16x16": dataclasses.replace(TINY, num_frames=4, speeds=FAST),
    "4x16x16 large": dataclasses.replace(TINY, num_frames=4, speeds=FAST, radius=3.5),
    "6x16x16": dataclasses.replace(TINY, num_frames=6, speeds=(("slowly", 5.0), ("quickly", 12.0))),
    "8x16x16": TINY,
    "8x16x16 all": dataclasses.replace(TINY, shapes=shapes.SHAPES, colors=tuple(shapes.COLORS)),
    "8x16x16 black": dataclasses.replace(  # white first: it is as near to 2 x red as red is
        TINY, colors=tuple(reversed(shapes.COLORS)), background=-1.0
    ),
    "8x20x32": dataclasses.replace(TINY, height=20, width=32, radius=3.5),
    "16x16x16": dataclasses.replace(
        TINY, num_frames=16, speeds=(("slowly", 2.5), ("quickly", 4.0)), frame_rates=(8.0,)
    ),
    "16x40x64": dataclasses.replace(
        TINY, num_frames=16, height=40, width=64, radius=6.0, shapes=shapes.SHAPES
    ),
}
RATES = ("present", "shape", "color", "direction", "speed", "all3", "all")


def _scenes(world, n, image=False):
    return [shapes.draw_scene(world, 7, g, image=image) for g in range(n)]


def _intervals(scenes):
    return [1 / s.frame_rate if s.frame_rate else 0.0 for s in scenes]


def _score(world, n, damage=lambda video, random: video, captions=None):
    scenes = _scenes(world, n)
    noise = np.random.default_rng(0)
    videos = [damage(shapes.render(world, s), noise) for s in scenes]
    captions = captions or [shapes.caption(s) for s in scenes]
    return oracle.score(videos, captions, world, _intervals(scenes))


def _levels(video):
    return video / 127.5 - 1


def _blur(video, sigma):
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    for axis in (1, 2):
        padded = np.pad(video, [(4, 4) if a == axis else (0, 0) for a in range(4)], mode="edge")
        moved = [np.take(padded, np.arange(video.shape[axis]) + i, axis) for i in range(9)]
        video = np.tensordot(kernel / kernel.sum(), moved, 1)
    return video


def _ghost(video, axis):
    """The video under a copy of itself, at half contrast and 3 px further on."""
    background = np.median(video, (0, 1, 2))
    shape = video - background
    copy = 0.5 * np.roll(shape, 3, axis)
    return background + np.where(abs(shape) > abs(copy), shape, copy)


@pytest.mark.parametrize("name", WORLDS)
def test_clean_videos_are_read_without_error(name):
    result = _score(WORLDS[name], 30 if name == "16x40x64" else 100)
    assert all(result[rate] >= 0.99 for rate in RATES)
    assert result["velocity_mae"] < 0.01 and result["clutter"] < 0.01
    assert result["explained"] > 0.99


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.3])
def test_noise_up_to_a_seventh_of_the_range_costs_no_factor(sigma):
    result = _score(TINY, 60, lambda v, r: _levels(v) + sigma * r.standard_normal(v.shape))
    assert all(result[rate] >= 0.99 for rate in RATES)
    assert result["velocity_mae"] < 0.1 * sigma
    assert math.isclose(result["clutter"], sigma, rel_tol=0.1)


def test_what_passes_the_gate_under_strong_noise_is_right():
    result = _score(TINY, 100, lambda v, r: _levels(v) + 0.5 * r.standard_normal(v.shape))
    assert 0.1 < result["present"] < 0.95
    assert result["all"] >= 0.97 * result["present"]


def test_the_gate_refuses_what_noise_has_drowned():
    result = _score(TINY, 60, lambda v, r: _levels(v) + 0.8 * r.standard_normal(v.shape))
    assert all(result[rate] == 0 for rate in RATES) and result["velocity_mae"] is None


def test_slight_blur_costs_nothing_and_strong_blur_only_shapes():
    slight = _score(TINY, 60, lambda v, _: _blur(_levels(v), 0.5))
    assert all(slight[rate] >= 0.99 for rate in RATES)
    strong = _score(TINY, 100, lambda v, _: _blur(_levels(v), 1.0))
    assert all(strong[rate] >= 0.99 for rate in ("present", "color", "direction", "speed"))
    assert abs(strong["shape"] - 0.83) < 0.08


def test_weak_contrast_costs_nothing():
    result = _score(TINY, 60, lambda v, _: 0.6 * _levels(v))
    assert all(result[rate] >= 0.99 for rate in RATES)


def test_a_hint_of_a_shape_is_not_present():
    result = _score(TINY, 20, lambda v, _: 0.15 * _levels(v))
    assert all(result[rate] == 0 for rate in RATES) and result["explained"] > 0.9


def test_frames_out_of_order_lose_the_motion():
    result = _score(TINY, 100, lambda v, r: r.permutation(v))
    assert result["direction"] < 0.45 and result["all"] < 0.35
    assert result["explained"] < 0.8 and result["velocity_mae"] > 0.3


@pytest.mark.parametrize("axis", [1, 2])
def test_a_ghost_at_half_contrast_beside_the_shape_hides_nothing(axis):
    world = WORLDS["4x16x16"]
    result = _score(world, 80, lambda v, _: _ghost(_levels(v), axis))
    assert result["shape"] >= 0.95 and result["direction"] == result["color"] == 1


def test_one_frame_out_of_place_does_not_bend_the_line():
    scene = shapes.Scene("circle", "red", "right", "quickly", 8.0, (8.0, 3.0))
    video = shapes.render(TINY, scene)
    video[-1] = np.roll(video[-1], (-4, -5), (0, 1))
    velocity = oracle.read(video, TINY, 1 / 8).velocity
    np.testing.assert_allclose(velocity, (0, 1), atol=0.05)


def test_reversed_videos_lose_the_direction_and_nothing_else():
    result = _score(TINY, 60, lambda v, _: v[::-1])
    assert result["direction"] == result["all"] == 0
    assert all(result[rate] >= 0.99 for rate in ("present", "shape", "color", "speed"))


def test_captions_of_other_videos_score_chance():
    captions = [shapes.caption(s) for s in _scenes(TINY, 150)]
    random.Random(0).shuffle(captions)
    result, chance = _score(TINY, 150, captions=captions), oracle.chance(TINY)
    assert all(abs(result[rate] - chance[rate]) < 0.08 for rate in chance)


@pytest.mark.parametrize(
    "damage",
    [
        lambda v, r: r.standard_normal(v.shape),
        lambda v, r: np.full_like(v, 90),
        lambda v, r: np.full(v.shape, np.nan),
    ],
    ids=["white noise", "constant", "nan"],
)
def test_a_video_of_nothing_scores_nothing_rather_than_chance(damage):
    result = _score(TINY, 30, damage)
    assert all(result[rate] == 0 for rate in RATES)


def test_chance_multiplies_the_factors():
    expected = {"shape": 1 / 3, "color": 1 / 4, "direction": 1 / 4, "speed": 1 / 2}
    expected |= {"all3": 1 / 48, "all": 1 / 96}
    assert oracle.chance(TINY) == pytest.approx(expected)


def test_a_reading_holds_the_velocity_and_the_background():
    scene = shapes.Scene("triangle", "blue", "up", "quickly", 8.0, (12.5, 6.2))
    reading = oracle.read(shapes.render(TINY, scene), TINY, 1 / 8)
    assert (reading.shape, reading.color) == ("triangle", "blue")
    assert (reading.direction, reading.speed) == ("up", "quickly")
    np.testing.assert_allclose(reading.velocity, (-1, 0), atol=0.01)
    contrast = math.dist(shapes.COLORS["blue"], (-0.8, -0.8, -0.8))
    assert math.isclose(reading.contrast, contrast, rel_tol=0.04)
    assert reading.background_error < 0.005 and reading.frame_change > 0.1


def test_speed_is_per_second_not_per_frame():
    scene = shapes.Scene("circle", "red", "right", "quickly", 8.0, (8.0, 3.0))
    video = shapes.render(TINY, scene)  # 1 px per frame
    assert oracle.read(video, TINY, 1 / 8).speed == "quickly"
    assert oracle.read(video, TINY, 1 / 4).speed == "slowly"
    assert oracle.read(video, TINY, 0.0).speed is None


def test_images_are_read_as_still():
    scenes = _scenes(TINY, 60, image=True)
    videos, captions = [shapes.render(TINY, s) for s in scenes], [shapes.caption(s) for s in scenes]
    result = oracle.score(videos, captions, TINY, _intervals(scenes))
    assert result["shape"] >= 0.99 and result["color"] >= 0.99 and result["all"] >= 0.99
    assert result["direction"] is result["speed"] is result["all3"] is None
    assert result["velocity_mae"] < 0.01
    reading = oracle.read(videos[0], TINY, 0.0)
    assert (reading.direction, reading.speed, reading.frame_change) == ("still", None, 0)


def test_motion_fails_an_image_caption_and_stillness_a_video_caption():
    moving, still = _scenes(TINY, 1)[0], _scenes(TINY, 1, image=True)[0]
    for scene, other in ((moving, still), (still, moving)):
        relabeled = scene._replace(direction=other.direction, speed=other.speed)
        video, caption = shapes.render(TINY, scene), shapes.caption(relabeled)
        result = oracle.score([video], [caption], TINY, [1 / 8])
        assert (result["shape"], result["color"], result["all"]) == (1, 1, 0)


def test_rates_are_over_the_captions_that_state_the_factor():
    scenes = _scenes(TINY, 6)
    captions = [shapes.caption(s, speed=i < 3) for i, s in enumerate(scenes)]
    wrong = {"slowly": "quickly", "quickly": "slowly"}[scenes[0].speed]
    captions[0] = shapes.caption(scenes[0]._replace(speed=wrong))
    videos = [shapes.render(TINY, s) for s in scenes]
    result = oracle.score(videos, captions, TINY, _intervals(scenes))
    assert (result["n"], result["direction"]) == (6, 1)
    assert result["speed"] == pytest.approx(2 / 3) and result["all"] == pytest.approx(5 / 6)


def test_paraphrases_score_like_captions():
    captions = [shapes.paraphrases(s)[g % 2] for g, s in enumerate(_scenes(TINY, 20))]
    assert _score(TINY, 20, captions=captions)["all"] == 1


def test_wilson_intervals_are_the_textbook_ones():
    result = _score(TINY, 10)
    assert result["wilson95"]["all"] == pytest.approx((0.7225, 1.0), abs=1e-4)
    reversed_ = _score(TINY, 10, lambda v, _: v[::-1])
    assert reversed_["wilson95"]["direction"] == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_unequal_or_empty_input_is_refused():
    with pytest.raises(ValueError):
        oracle.score([np.zeros((4, 16, 16, 3))], [], TINY, [0.0])
    with pytest.raises(ValueError, match="at least one"):
        oracle.score([], [], TINY, [])


def test_64_videos_cost_well_under_a_second():
    started = time.process_time()
    _score(TINY, 64)
    assert time.process_time() - started < 1
