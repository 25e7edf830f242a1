"""Section 3.2: averaging n equal pixels divides the noise's variance by n."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import redundancy


def noise(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def half(videos):
    return redundancy.half_noise_level(redundancy.power_spectrum(videos))


def test_a_spectrum_has_all_of_the_variance():
    videos = 3 * noise(4, 2, 8, 8, 3) + 5
    power = redundancy.power_spectrum(videos)
    assert power.shape == (2, 8, 8)
    np.testing.assert_allclose(power.mean(), videos.var(), rtol=1e-5)


def test_independent_pixels_bear_their_own_standard_deviation():
    np.testing.assert_allclose(half(0.7 * noise(500, 2, 4, 4, 3)), 0.7, rtol=0.01)


@pytest.mark.parametrize("frames", [4, 16])
def test_T_equal_frames_bear_sqrt_T_times_the_noise(frames):
    images = noise(8, 1, 8, 8, 3)
    videos = jnp.repeat(images, frames, axis=1)
    np.testing.assert_allclose(half(videos), half(images) * frames**0.5, rtol=1e-4)


def test_blocks_of_equal_pixels_bear_more_and_busy_pictures_less():
    flat = jnp.repeat(jnp.repeat(noise(50, 2, 4, 4, 3), 4, axis=2), 4, axis=3)
    assert half(flat) > 2 * half(noise(50, 2, 16, 16, 3))


@pytest.mark.parametrize("u", [0.1, 1.0, 10.0])
def test_no_linear_denoiser_leaves_less_than_wiener_error(u):
    """Against least squares on noisy samples of a correlated process, 8 numbers each."""
    root = np.random.default_rng(0).normal(size=(8, 8)) / 3
    power = np.linalg.eigvalsh(root @ root.T)
    x = np.random.default_rng(1).normal(size=(200_000, 8)) @ root.T
    y = x + u * np.random.default_rng(2).normal(size=x.shape)
    residual = x - y @ np.linalg.lstsq(y, x, rcond=None)[0]
    np.testing.assert_allclose(
        (residual**2).sum() / (x**2).sum(), redundancy.wiener_error(power, u), rtol=0.02
    )


def test_equal_pixels_are_refused():
    with pytest.raises(ValueError, match="all pixels of all videos are equal"):
        half(jnp.ones((2, 2, 4, 4, 3)))


def test_stage_1_of_the_paper_by_size():
    assert redundancy.sigma_in_by_size(16, 36, 64) == 4
    assert redundancy.sigma_in_by_size(16, 288, 512) == 32
