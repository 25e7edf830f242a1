"""Conditioning augmentation: the noise that an upsampler's low resolution carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import augmentation


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_level_0_is_the_video_and_level_1_noise_alone():
    x, eps = normal(0, 2, 1, 2, 3, 3), normal(1, 2, 1, 2, 3, 3)
    corrupted = augmentation.corrupt(x, jnp.array([0.0, 1.0]), eps)
    np.testing.assert_array_equal(corrupted[0], x[0])
    np.testing.assert_allclose(corrupted[1], eps[1], atol=1e-6)


@pytest.mark.parametrize(("level", "snr"), [(1 / 3, 3.0), (0.26772, 5.0)])
def test_variance_is_preserved_and_levels_have_imagen_videos_signal_to_noise(level, snr):
    one, zero = jnp.ones((1, 1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1, 1))
    signal = augmentation.corrupt(one, jnp.array([level]), zero)
    noise = augmentation.corrupt(zero, jnp.array([level]), one)
    assert float(signal.squeeze() ** 2 + noise.squeeze() ** 2) == pytest.approx(1, abs=1e-6)
    assert float((signal / noise).squeeze() ** 2) == pytest.approx(snr, rel=1e-3)


def test_resizing_works_frame_by_frame_and_keeps_constants():
    x = jnp.broadcast_to(jnp.arange(3.0)[None, :, None, None, None], (1, 3, 8, 8, 1))
    for size in ((2, 4), (16, 8)):
        resized = augmentation.resize(x, size)
        assert resized.shape == (1, 3, *size, 1)
        np.testing.assert_allclose(resized[0, :, 0, 0, 0], jnp.arange(3.0), atol=1e-6)


def test_shrinking_is_antialiased():
    stripes = jnp.tile(jnp.array([1.0, -1.0]), 8).reshape(1, 1, 1, 16, 1)
    stripes = jnp.broadcast_to(stripes, (1, 1, 16, 16, 1))
    assert float(jnp.abs(augmentation.resize(stripes, (4, 4))).max()) < 0.2


def test_noise_that_goes_on_before_enlarging_stays_after_averaging():
    eps = normal(2, 1, 1, 8, 8, 1)
    before = augmentation.resize(augmentation.corrupt(0 * eps, jnp.array([0.5]), eps), (64, 64))
    fine = normal(3, 1, 1, 64, 64, 1)
    after = augmentation.corrupt(0 * fine, jnp.array([0.5]), fine)
    std_of_blocks = lambda x: float(augmentation.resize(x, (8, 8)).std())
    assert std_of_blocks(before) > 4 * std_of_blocks(after)
