"""Whole sampling runs, on normals and mixtures of normals whose denoisers are exact.

In float32, against the formulas in float64; and against the distribution that they should sample.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

from snapvideo_jax.diffusion import sampler, sigmas
from tests.diffusion import closed_forms, whole

DATA = {"one": closed_forms.ONE, "two": closed_forms.TWO}
CHURN = dict(S_churn=10.0, S_min=0.01, S_max=20.0, S_noise=1.0)
every_scale = pytest.mark.parametrize("si", [1.0, 4.0, 32.0])


def grid_of(N, si):
    # The sample keeps a noise of the last level: small beside the data, whatever the scale.
    return sigmas.sampling_grid(N, sigma_min=0.002 / si, sigma_max=80.0, rho=7.0)


def noise_of(n):
    return lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(5), i), (n, 2))


def normals(n):
    """Points of the plane's normal, spread evenly (a Kronecker lattice), so that few suffice."""
    i = np.arange(1, n + 1)[:, None]
    return np.asarray(jax.scipy.special.ndtri((i * [0.7548776662, 0.5698402910]) % 1))


@functools.cache
def sampled(kind, si, N, n, solver="heun", churned=False):
    """(where it started, the samples) of one compiled run."""
    D, grid = DATA[kind].denoiser(jnp, si), grid_of(N, si)
    churn = sampler.Churn(noise_of(n), **CHURN) if churned else None
    denoise = lambda x, sigma, guidance, carry: (D(x, sigma), carry)
    run = jax.jit(lambda x: whole.sample(denoise, x, grid, si, None, solver=solver, churn=churn))
    start = (80 * normals(n)).astype(np.float32)
    return start.astype(np.float64), np.asarray(run(start), np.float64)


@every_scale
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("way", ["heun", "euler", "churn"])
def test_float32_follows_the_formulas_in_float64_to_a_hundred_thousandth(way, kind, si):
    N, n, churned = 32, 256, way == "churn"
    start, got = sampled(kind, si, N, n, "heun" if churned else way, churned)
    grid = grid_of(N, si).astype(np.float64)
    inside = (grid[:-1] >= CHURN["S_min"]) & (grid[:-1] <= CHURN["S_max"])
    gamma = np.where(churned & inside, CHURN["S_churn"] / N, 0)
    expected = closed_forms.sample_snap(
        DATA[kind].denoiser(np, si), start, grid, si, way != "euler", gamma, eps=noise_of(n)
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@every_scale
@pytest.mark.parametrize("kind", DATA)
def test_samples_have_the_mean_and_the_covariance_of_the_data_to_a_hundredth(kind, si):
    _, x = sampled(kind, si, 160, 4096)
    mean, covariance = DATA[kind].moments()
    unit = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(x.mean(axis=0) / unit, mean / unit, rtol=0, atol=0.01)
    scale = np.outer(unit, unit)
    np.testing.assert_allclose(np.cov(x.T) / scale, covariance / scale, rtol=0, atol=0.01)


@every_scale
def test_samples_share_the_parts_of_a_mixture_as_its_weights_say(si):
    _, x = sampled("two", si, 160, 4096)
    np.testing.assert_allclose(DATA["two"].parts(x).mean(axis=0), DATA["two"].weights, rtol=0.02)


@every_scale
def test_with_churn_the_parts_keep_their_weights(si):
    """Each sample's noise, of its start and its steps, is a point of a Sobol sequence.

    With independent noise 2 % of the smaller part would be 1.7 standard deviations, and now and
    then be missed.
    """
    N, n = 64, 2**14
    points = jnp.asarray(qmc.Sobol(2 * (N + 1), rng=0).random(n).reshape(n, N + 1, 2))
    noise = jax.scipy.special.ndtri(points).swapaxes(0, 1)
    churn = sampler.Churn(lambda i: noise[1 + i], **CHURN)
    D = DATA["two"].denoiser(jnp, si)
    denoise = lambda x, sigma, guidance, carry: (D(x, sigma), carry)
    run = jax.jit(lambda x: whole.sample(denoise, x, grid_of(N, si), si, None, churn=churn))
    shares = DATA["two"].parts(np.asarray(run(80 * noise[0]), np.float64)).mean(axis=0)
    np.testing.assert_allclose(shares, DATA["two"].weights, rtol=0.02)


@every_scale
@pytest.mark.parametrize("S_noise", [1.0, 1.1])
def test_churn_keeps_the_variance_of_white_data_and_more_noise_adds_to_it(S_noise, si):
    """The sampler is linear here, so each unit of noise can be followed alone and exactly.

    Example 0 has the first noise and example 1 + i that of step i; each ends with its part of the
    sample, and the squares of the parts are the variance.
    """
    N, grid = 256, grid_of(256, si)
    alone = lambda i: jnp.zeros(N + 1).at[1 + i].set(1.0)
    churn = sampler.Churn(alone, 40.0, 0.01, 20.0, S_noise)
    denoise = lambda x, sigma, guidance, carry: (si / (1 + si**2 * sigma**2) * x, carry)
    start = jnp.zeros(N + 1).at[0].set(80.0)
    parts = whole.sample(denoise, start, grid, si, None, churn=churn)
    variance = np.sum(np.square(parts, dtype=np.float64))
    assert np.square(parts[0]) < 0.9  # there was churn
    if S_noise == 1:
        assert variance == pytest.approx(1, abs=0.01)
    else:
        assert variance > 1.05
