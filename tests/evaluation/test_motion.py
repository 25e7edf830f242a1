"""Measures of motion on videos whose motion is known."""

import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import motion
from tests.evaluation import inputs

CANVAS = inputs.pixels((96, 96, 3), 0)


def moving(velocity, frames=9, size=64):
    """A window that moves over a textured canvas, so that the picture moves by `velocity`."""
    starts = [(16 - velocity[0] * t, 16 - velocity[1] * t) for t in range(frames)]
    return np.stack([CANVAS[y : y + size, x : x + size] for y, x in starts])


def test_flicker_is_the_mean_difference_of_neighbors():
    video = np.zeros((3, 4, 4, 3), np.uint8)
    video[1] = 51
    assert motion.flicker(video) == pytest.approx(1 - 51 / 255)
    assert motion.flicker(video[[0, 0, 0]]) == 1


@pytest.mark.parametrize("velocity", [(0, 0), (1, 0), (0, -2), (2, -1)])
def test_blocks_away_from_the_edge_move_as_the_picture_does(velocity):
    before, after = moving(velocity, 2).astype(np.float32).mean(-1)
    vectors = motion.displacements(before, after, reach=4)
    assert (vectors[1:-1, 1:-1] == velocity).all()


@pytest.mark.parametrize("velocity", [(0, 0), (0, 2), (-1, 1)])
def test_speed_is_the_length_of_the_velocity(velocity):
    np.testing.assert_allclose(motion.speeds(moving(velocity)), np.hypot(*velocity), atol=0.35)


def is_dynamic(video):
    return motion.is_dynamic(motion.speeds(video), min(video.shape[1:3]))


def test_noise_is_no_motion():
    noise = np.random.RandomState(0).uniform(-20, 20, (6, 64, 64, 3))
    video = (128 + noise).astype(np.uint8)
    assert motion.speeds(video).max() < 0.5
    assert not is_dynamic(video)


def test_dynamic_is_faster_than_6_of_256_pixels_in_a_quarter_of_the_frames():
    threshold = 64 * 6 / 256  # 1.5 pixels
    assert not is_dynamic(moving((1, 0))) and 1 < threshold
    assert is_dynamic(moving((2, 0))) and 2 > threshold
    once = np.concatenate([moving((0, 0), 7), moving((0, 2), 2)])
    assert not is_dynamic(once)


@pytest.mark.parametrize("velocity", [(0, 0), (2, 0), (1, -3)])
def test_steady_motion_is_smooth(velocity):
    before, truth, after = moving(velocity, 3)
    between = motion.interpolate(before, after, reach=4)
    np.testing.assert_allclose(between[8:-8, 8:-8], truth[8:-8, 8:-8], atol=0.5)


def test_jerks_are_less_smooth_than_steady_motion():
    steady = moving((0, 2))
    jerky = steady.copy()
    jerky[1::2] = jerky[:-1:2]  # every frame stands, then the picture jumps
    assert motion.smoothness(moving((0, 0))) == 1
    assert motion.smoothness(steady) > 0.98
    assert motion.smoothness(jerky) < motion.smoothness(steady) - 0.05


@pytest.mark.parametrize("measure", [motion.flicker, motion.smoothness, motion.speeds])
def test_one_frame_is_refused_in_one_line(measure):
    with pytest.raises(DataError, match=r"^a measure of motion needs uint8 .* has uint8 \(1, "):
        measure(moving((0, 0), 1))
    with pytest.raises(DataError, match="has float64"):
        measure(np.zeros((4, 8, 8, 3)))
