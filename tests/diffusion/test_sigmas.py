"""The density of noise levels in training and the grid of the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import edm, sigmas

EDM = dict(sigma_min=0.002, sigma_max=80.0, rho=7.0)


def test_ln_sigma_is_normal_with_the_given_mean_and_deviation():
    drawn = np.asarray(sigmas.draw_log_sigma(jax.random.key(0), 2**16, -1.2, 1.2))
    assert drawn.mean() == pytest.approx(-1.2, abs=0.02)
    assert drawn.std() == pytest.approx(1.2, abs=0.02)
    assert np.mean(drawn < -1.2 - 1.2) == pytest.approx(0.1587, abs=0.01)


def test_each_example_draws_its_own_level_and_a_key_repeats_its_draw():
    first, again = (sigmas.draw_log_sigma(jax.random.key(7), 8, -1.2, 1.2) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) == 8


@pytest.mark.parametrize(("si", "mean"), [(1, 1.0), (4, 9.3669), (32, 247.559)])
def test_the_mean_weight_is_that_of_the_training_density(si, mean):
    got = sigmas.mean_loss_weight_F(-1.2, 1.2, 1.0, si)
    assert got == pytest.approx(mean, rel=1e-5)
    s2 = np.exp(2 * (-1.2 + 1.2 * np.random.default_rng(0).standard_normal(10**6)))
    assert got == pytest.approx(np.mean((s2 + 1) ** 2 / (s2 + 1 / si) ** 2), rel=0.01)


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_the_network_that_answers_zero_has_the_mean_weight_as_its_loss(sd):
    rng = np.random.default_rng(1)
    x, eps = sd * rng.standard_normal((2**14, 8)), rng.standard_normal((2**14, 8))
    sigma = np.exp(-1.2 + 1.2 * rng.standard_normal(2**14))
    loss = np.mean(edm.loss_F(*map(jnp.asarray, (np.zeros_like(x), x, eps, sigma)), sd, 4.0))
    assert loss == pytest.approx(sigmas.mean_loss_weight_F(-1.2, 1.2, sd, 4.0), rel=0.03)


@pytest.mark.parametrize("N", [2, 40, 256])
def test_the_grid_follows_edm_and_falls_to_zero(N):
    grid = sigmas.sampling_grid(N, **EDM)
    i = np.arange(N)
    expected = (80 ** (1 / 7) + i / (N - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid[:-1], expected, rtol=1e-6)
    assert grid.shape == (N + 1,) and grid.dtype == np.float32
    np.testing.assert_allclose(grid[[0, N - 1]], [80, 0.002], rtol=1e-6)
    assert grid[N] == 0 and (np.diff(grid) < 0).all()


def test_a_grid_of_one_step_is_one_jump_from_the_top():
    np.testing.assert_array_equal(sigmas.sampling_grid(1, **EDM), np.float32([80, 0]))


@pytest.mark.parametrize("N", [0, -3])
def test_a_grid_without_steps_is_refused(N):
    with pytest.raises(ValueError, match=f"at least 1 step, got {N}"):
        sigmas.sampling_grid(N, **EDM)


def test_images_and_videos_of_a_batch_see_the_same_noise_levels():
    """The images are the first rows of a batch (paper 3.3); the draw knows no rows."""
    drawn = np.asarray(sigmas.draw_log_sigma(jax.random.key(0), 2**15, -1.2, 1.2))
    images, videos = drawn[: 2**14], drawn[2**14 :]
    assert abs(images.mean() - videos.mean()) < 0.05
    assert images.std() == pytest.approx(videos.std(), rel=0.03)
    assert abs(np.corrcoef(images, videos)[0, 1]) < 0.03
