"""Features without weights: frozen numbers, and distances that see what was damaged."""

import dataclasses

import numpy as np
import pytest

from snapvideo_jax.data import shapes
from snapvideo_jax.evaluation import distances, factors, moments
from snapvideo_jax.evaluation.features import random_conv

WORLD = shapes.World(
    num_frames=8,
    height=16,
    width=16,
    radius=2.8,
    shapes=("circle", "square", "triangle"),
    colors=("red", "green", "blue", "yellow"),
    directions=("left", "right", "up", "down"),
    speeds=(("slowly", 4.0), ("quickly", 8.0)),
    frame_rates=(8.0,),
)

SCENE = ("square", "green", "left")


def videos(n, seed, **fields):
    world = dataclasses.replace(WORLD, **fields)
    scenes = [shapes.draw_scene(world, seed, g, image=False) for g in range(n)]
    return np.stack([shapes.render(world, scene) for scene in scenes])


@pytest.fixture(scope="module")
def real():
    return videos(400, 0)


EXTRACTORS = {
    "random_conv": random_conv.features,
    "factors": lambda x: factors.features(x, WORLD, 1 / 8),
}
DAMAGES = {
    "colors": lambda: videos(400, 1, colors=("red", "green")),
    "directions": lambda: videos(400, 1, directions=("left", "right")),
    "backwards in part": lambda: np.concatenate([x := videos(400, 1), x[:, ::-1]], 1)[:, 4:12],
    "frames in disorder": lambda: videos(400, 1)[:, [3, 7, 0, 5, 2, 6, 1, 4]],
    "noise": lambda: np.random.RandomState(0).randint(0, 256, (400, 8, 16, 16, 3)).astype(np.uint8),
}


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_set_is_farther_than_a_sound_one(real, name, damage):
    extract = EXTRACTORS[name]
    of_real = moments.of(extract(real))
    distance = lambda x: distances.frechet_distance(of_real, moments.of(extract(x)))
    assert distance(DAMAGES[damage]()) > 2 * distance(videos(400, 1))


def test_a_vector_names_its_numbers():
    scenes = (shapes.draw_scene(WORLD, 0, g, image=False) for g in range(100))
    scene = next(s for s in scenes if (s.shape, s.color, s.direction) == SCENE)
    values = factors.vector(shapes.render(WORLD, scene), WORLD, 1 / 8)
    read = dict(zip(factors.names(WORLD), values, strict=True))
    assert (read["square"], read["circle"], read["green"], read["blue"]) == (1, 0, 1, 0)
    assert read["velocity x"] < -0.3 and abs(read["velocity y"]) < 0.2
    blank = factors.vector(np.zeros((8, 16, 16, 3), np.uint8), WORLD, 1 / 8)
    assert not blank[:7].any()


def test_random_features_are_the_same_everywhere_and_change_with_the_seed():
    video = (127 + 120 * np.sin(np.arange(2 * 8 * 16 * 16 * 3))).astype(np.uint8)
    video = video.reshape(2, 8, 16, 16, 3)
    features = random_conv.features(video)
    assert features.shape == (2, random_conv.FEATURES)
    np.testing.assert_allclose(features[0, :3], [0.805689, 1.512296, 0.475743], atol=2e-5)
    assert np.abs(features - random_conv.features(video, seed=1)).max() > 0.1
