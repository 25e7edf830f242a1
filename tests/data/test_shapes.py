"""The embedded data set: pixels, captions, what is held out, and worlds that are refused."""

import collections
import dataclasses
import math

import numpy as np
import pytest

from snapvideo_jax.data import shapes
from snapvideo_jax.data.outlines import SHAPES, coverage
from snapvideo_jax.data.world import (
    COLORS,
    DIRECTIONS,
    Composition,
    World,
    compositions,
    is_held_out,
)
from snapvideo_jax.errors import ConfigError

WORLD = World(
    num_frames=4,
    height=16,
    width=16,
    radius=2.8,
    shapes=("circle", "square", "triangle"),
    colors=("red", "green", "blue", "yellow"),
    directions=("left", "right", "up", "down"),
    speeds=(("slowly", 8.0), ("quickly", 16.0)),
    frame_rates=(8.0, 12.0),
)
ALL_SHAPES = dataclasses.replace(WORLD, shapes=SHAPES)
TRIPLE = slice(0, 3)
GOLDEN_FACTS = ("square", "yellow", "down", "quickly", 8.0)
GOLDEN_START = (5.97542242974764, 12.22428905844193)


def _alpha(world, scene):
    """Coverage recovered from the pixels, with the background as it was rounded to uint8."""
    video = shapes.render(world, scene).astype(np.float64) / 127.5 - 1
    background = np.median(video)
    color = np.array(COLORS[scene.color]) - background
    return (video - background) @ color / (color @ color)


def _centroids(alpha):
    mass = alpha.sum((1, 2))
    y, x = np.arange(alpha.shape[1]), np.arange(alpha.shape[2])
    return np.stack([alpha.sum(2) @ y, alpha.sum(1) @ x], 1) / mass[:, None]


def test_an_example_is_a_pure_function_of_seed_and_index():
    first = shapes.example(WORLD, 3, 41, image=False)
    np.random.seed(0)
    again = shapes.example(WORLD, 3, 41, image=False)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert shapes.draw_scene(WORLD, 3, 41, image=False) != shapes.draw_scene(
        WORLD, 3, 42, image=False
    )
    assert shapes.draw_scene(WORLD, 3, 41, image=False) != shapes.draw_scene(
        WORLD, 4, 41, image=False
    )


def test_scenes_stay_as_they_were_so_that_runs_can_resume():
    scene = shapes.draw_scene(WORLD, 0, shapes.TEST_START + 1, image=False)
    assert scene[:5] == GOLDEN_FACTS
    np.testing.assert_allclose(scene.start, GOLDEN_START, rtol=1e-12)


def test_training_never_shows_a_held_out_triple_and_held_out_draws_only_those():
    for g in range(300):
        trained, held = (
            shapes.draw_scene(WORLD, 0, g, image=False, held_out=h) for h in (False, True)
        )
        assert not is_held_out(WORLD, *trained[TRIPLE])
        assert is_held_out(WORLD, *held[TRIPLE])


def test_a_sixth_is_held_out_and_every_pair_of_values_is_trained():
    trained, held = (compositions(WORLD, h) for h in (False, True))
    assert (len({c[TRIPLE] for c in held}), len({c[TRIPLE] for c in trained})) == (8, 40)
    for a, b, pairs in ((0, 1, 12), (0, 2, 12), (1, 2, 16)):
        assert len({(c[a], c[b]) for c in trained}) == pairs


def test_trained_compositions_and_frame_rates_are_drawn_equally_often():
    n = 4000
    scenes = [shapes.draw_scene(WORLD, 1, g, image=False) for g in range(n)]
    counts = collections.Counter(scene[:4] for scene in scenes)
    assert set(counts) == set(compositions(WORLD, False))
    assert max(counts.values()) < 2 * n / 80  # mean 50, standard deviation 7
    rates = collections.Counter((s.speed, s.frame_rate) for s in scenes)
    assert all(abs(count - n / 4) < 0.03 * n for count in rates.values())


def test_images_draw_every_shape_in_every_color_and_stand_still():
    scenes = [shapes.draw_scene(WORLD, 1, g, image=True) for g in range(300)]
    assert len({(s.shape, s.color) for s in scenes}) == 12
    video, caption, frame_interval, source_size = shapes.example(WORLD, 1, 0, image=True)
    assert (video == video[0]).all() and frame_interval == 0 and source_size == (16, 16)
    assert caption == f"a {scenes[0].color} {scenes[0].shape}"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_of_the_disc(shape):
    offsets = np.arange(-9.0, 10.0)
    areas = [
        coverage(shape, 4.5, offsets[:, None] - y, offsets - x).sum()
        for y, x in ((0, 0), (0.3, 0.1), (0.5, 0.5))
    ]
    np.testing.assert_allclose(areas, math.pi * 4.5**2, rtol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centroid_is_where_the_scene_says(shape):
    scene = shapes.Scene(shape, "red", "right", "slowly", 8.0, (8.3, 5.6))
    expected = [(8.3, 5.6 + t) for t in range(4)]
    np.testing.assert_allclose(_centroids(_alpha(ALL_SHAPES, scene)), expected, atol=0.06)


def test_displacement_per_frame_is_speed_over_frame_rate():
    for direction, (y, x) in DIRECTIONS.items():
        scene = shapes.Scene("circle", "red", direction, "quickly", 12.0, (7.5, 7.5))
        moved = np.diff(_centroids(_alpha(WORLD, scene)), axis=0)
        np.testing.assert_allclose(moved, [(y * 16 / 12, x * 16 / 12)] * 3, atol=0.05)


def test_no_shape_ever_leaves_the_frame():
    world = dataclasses.replace(ALL_SHAPES, num_frames=6, width=20, speeds=(("slowly", 9.0),))
    for g in range(300):
        areas = _alpha(world, shapes.draw_scene(world, 5, g, image=False)).sum((1, 2))
        np.testing.assert_allclose(areas, math.pi * world.radius**2, rtol=0.05)


def test_starts_reach_all_legal_positions():
    starts = [
        s.start[1]
        for s in (shapes.draw_scene(WORLD, 2, g, image=False) for g in range(3000))
        if (s.shape, s.direction, s.speed, s.frame_rate) == ("circle", "right", "quickly", 8.0)
    ]
    # From touching the left edge to touching the right one three steps of 2 px later.
    low, high = 2.8 - 0.5, 15.5 - 2.8 - 6
    assert low <= min(starts) < low + 0.5 and high - 0.5 < max(starts) <= high


def test_the_spread_is_the_share_of_legal_starts_around_their_middle():
    ends = {}
    for spread in (0.0, 0.25, 1.0):
        world = dataclasses.replace(WORLD, spread=spread)
        drawn = (shapes.draw_scene(world, 2, g, image=False) for g in range(3000))
        xs = [s.start[1] for s in drawn if s[0] == "circle" and s[2:5] == ("right", "quickly", 8.0)]
        ends[spread] = min(xs), max(xs)
    low, high = ends[1.0]
    middle, width = (2.8 - 0.5 + 15.5 - 2.8 - 6) / 2, high - low
    assert ends[0.0] == pytest.approx((middle, middle))
    assert ends[0.25] == pytest.approx((middle - width / 8, middle + width / 8), abs=0.1)
    with pytest.raises(ConfigError, match="World.spread is 1.5: give a share"):
        dataclasses.replace(WORLD, spread=1.5)


def test_pixels_are_exactly_background_outside_and_color_inside():
    scene = shapes.Scene("circle", "green", None, None, 0.0, (8.0, 8.0))
    video = shapes.render(WORLD, scene)
    assert video.shape == (4, 16, 16, 3) and video.dtype == np.uint8
    assert video[0, 8, 8].tolist() == [0, 255, 0] and video[0, 0, 0].tolist() == [26, 26, 26]


def test_captions_state_the_scene():
    scene = Composition("circle", "red", "left", "slowly")
    assert shapes.caption(scene) == "a red circle moves left slowly"
    assert shapes.caption(scene, speed=False) == "a red circle moves left"
    assert shapes.paraphrases(scene) == [
        "a slowly left-moving red circle",
        "there is a red circle moving left slowly",
    ]


def test_parse_reads_back_captions_and_paraphrases():
    for held_out in (False, True):
        for c in compositions(WORLD, held_out):
            for text in [shapes.caption(c), *shapes.paraphrases(c)]:
                assert shapes.parse(text) == c._asdict()
    assert shapes.parse("A blue square, please") == {"color": "blue", "shape": "square"}


def test_a_quarter_of_training_captions_lack_the_speed():
    n = 1000
    scene = shapes.draw_scene(WORLD, 0, 0, image=False)
    texts = [shapes.training_caption(scene, 0, g) for g in range(n)]
    assert abs(sum("speed" not in shapes.parse(text) for text in texts) - n / 4) < 45


def test_all_captions_are_those_that_examples_show():
    shown = {shapes.example(WORLD, 0, g, image=g % 4 == 0)[1] for g in range(3000)}
    assert shown == set(shapes.all_captions(WORLD))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": 4.0}, r"radius <= 3\.71 px or quickly <= 13\.93 px/s"),
        ({"radius": 9.0}, r"radius <= 3\.71 px$"),
        ({"speeds": (("slowly", 2.0), ("quickly", 16.0))}, r"at least 3\.6 px/s"),
        ({"shapes": ("disc",)}, "circle"),
        ({"colors": ()}, "red"),
        ({"directions": ("left", "left")}, "each once"),
        ({"speeds": (("fast", 8.0),)}, "slowly"),
        ({"frame_rates": ()}, "positive"),
        ({"height": 0}, "positive"),
        ({"num_frames": 1}, "at least 2"),
        ({"background": 2.0}, r"\[-1, 1\]"),
        ({"background": 1.0, "colors": ("red", "white")}, "hides white"),
        ({"shapes": ("circle",), "colors": ("red",)}, "two or more"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused_with_the_way_out(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        dataclasses.replace(WORLD, **changes)
    assert "\n" not in str(error.value)


def test_the_advised_radius_and_speed_are_legal():
    dataclasses.replace(WORLD, radius=3.71)
    dataclasses.replace(WORLD, radius=4.0, speeds=(("slowly", 8.0), ("quickly", 13.93)))


def test_no_image_is_held_out():
    with pytest.raises(ValueError, match="held-out"):
        shapes.draw_scene(WORLD, 0, 0, image=True, held_out=True)
