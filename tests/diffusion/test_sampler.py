"""The sampler against closed forms and against EDM's algorithm 1, written again in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import sampler, sigmas

grid_of = functools.partial(sigmas.sampling_grid, sigma_min=0.002, sigma_max=80.0, rho=7.0)


def edm_algorithm_1(D, y, grid):
    """Heun's deterministic sampler (Karras et al. 2022, algorithm 1, without churn)."""
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        d = (y - D(y, t)) / t
        y_next = y + (t_next - t) * d
        if t_next > 0:
            d_next = (y_next - D(y_next, t_next)) / t_next
            y_next = y + (t_next - t) * (d + d_next) / 2
        y = y_next
    return y


def white(si):
    """The ideal denoiser of N(0, 1) data."""
    return lambda x, sigma, carry: (si / (1 + si**2 * sigma**2) * x, carry)


def white_errors(si, N, n=2000):
    """(sampled, exact) from n starting points at sigma_max.

    The exact flow scales x with its deviation sqrt(1 / si^2 + sigma^2) down to sigma_min, where
    the sampler answers with the ideal estimate.
    """
    start = 80 * np.random.default_rng(0).standard_normal(n).astype(np.float32)
    sampled = sampler.heun(white(si), start, grid_of(N), si, None)
    deviation = lambda sigma: np.sqrt(1 / si**2 + sigma**2)
    arrived = start * deviation(0.002) / deviation(80.0)
    return np.asarray(sampled), si / (1 + (si * 0.002) ** 2) * arrived


@pytest.mark.parametrize("N", [1, 2, 5])
def test_n_steps_take_2n_minus_1_evaluations_at_the_levels_of_the_grid(N):
    """The denoiser notes each level in its carry and answers with its notes."""

    def denoise(x, sigma, carry):
        notes, count = carry
        notes = notes.at[count].set(sigma)
        return notes, (notes, count + 1)

    grid = grid_of(N)
    blank = jnp.full(2 * N + 3, -1.0)
    notes = sampler.heun(denoise, jnp.ones_like(blank), grid, 1.0, (blank, 0))
    expected = np.concatenate([grid[:1], np.repeat(grid[1:-1], 2)])
    np.testing.assert_array_equal(notes[: 2 * N - 1], expected)
    np.testing.assert_array_equal(notes[2 * N - 1 :], -1)


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_the_sample_is_the_last_estimate_bit_for_bit(si):
    grid = grid_of(3)
    estimate = np.float32([0.1, -0.7, 1 / 3])
    last = lambda x, sigma, carry: (jnp.where(sigma == grid[2], estimate, x), carry)
    got = sampler.heun(last, jnp.ones(3), grid, si, None)
    np.testing.assert_array_equal(got, estimate)


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
@pytest.mark.parametrize("N", [1, 8])
def test_it_is_edms_sampler_on_the_scaled_data(si, N):
    bend = lambda np_, x, s: si / (1 + si**2 * s**2) * x + 0.3 * np_.tanh(x)
    start = 80 * np.random.default_rng(1).standard_normal(64)
    grid = grid_of(N).astype(np.float64)
    expected = si * edm_algorithm_1(lambda y, t: bend(np, y, t) / si, start, grid)
    got = sampler.heun(
        lambda x, s, carry: (bend(jnp, x, s), carry), start.astype(np.float32), grid_of(N), si, None
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_it_is_of_second_order(si):
    error = {}
    for N in (20, 40, 80):
        sampled, exact = white_errors(si, N)
        error[N] = np.abs(sampled - exact).max()
    assert 3.8 < error[20] / error[40] < 5.5
    assert 3.8 < error[40] / error[80] < 5.5


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_256_steps_sample_white_data_to_three_thousandths(si):
    sampled, exact = white_errors(si, 256, n=20_000)
    assert np.abs(sampled - exact).max() <= 3e-3
    assert abs(sampled.std() - exact.std()) <= 3e-3


def test_a_heun_step_is_exact_where_the_slope_is_linear_in_the_level():
    """D = x - 2 sigma^2 at sigma_in = 1 means dx/dsigma = 2 sigma, so x moves by its integral."""
    denoise = lambda x, sigma, carry: (x - 2 * sigma**2, carry)
    x, _ = sampler.heun_step(denoise, jnp.float32(5.0), 3.0, 1.0, 1.0, None)
    assert x == pytest.approx(5.0 - (3.0**2 - 1.0**2))


def test_an_euler_step_follows_the_slope_at_its_start():
    denoise = lambda x, sigma, carry: (0.25 * x, carry + 1)
    x, slope, carry = sampler.euler(denoise, jnp.float32(2.0), 4.0, 1.0, 2.0, 0)
    assert slope == pytest.approx((2.0 - 0.5 / 2) / 4)
    assert x == pytest.approx(2.0 - 3 * float(slope))
    assert carry == 1


def test_the_program_is_the_same_whatever_the_number_of_steps():
    def size(N):
        run = lambda x: sampler.heun(white(4.0), x, grid_of(N), 4.0, None)
        return len(jax.make_jaxpr(run)(jnp.ones(3)).eqns)

    assert size(4) == size(64)
