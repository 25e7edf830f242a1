"""The sampler against closed forms and against EDM's algorithm 2, written again in float64."""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax.diffusion import sampler, sigmas
from tests.diffusion import closed_forms, whole

grid_of = functools.partial(sigmas.sampling_grid, sigma_min=0.002, sigma_max=80.0, rho=7.0)
SOLVERS = typing.get_args(sampler.Solver)
# EDM's defaults: at all levels, as it is.
churn_of = functools.partial(sampler.Churn, S_min=0.0, S_max=math.inf, S_noise=1.0)
every_scale = pytest.mark.parametrize("si", [1.0, 4.0, 32.0])


def bend(np_, si):
    """A denoiser that is not linear: white data's, and a wave."""
    return lambda x, sigma: si / (1 + si**2 * sigma**2) * x + 0.3 * np_.tanh(x)


def without_carry(D):
    return lambda x, sigma, guidance, carry: (D(x, sigma), carry)


def noted(D, size):
    """The denoiser whose carry lists the points, levels and weights that it was asked for."""

    def denoise(x, sigma, guidance, carry):
        points, levels, weights, n = carry
        note = lambda notes, value: notes.at[n].set(value)
        notes = note(points, x), note(levels, sigma), note(weights, guidance)
        return D(x, sigma), (*notes, n + 1)

    return denoise, lambda x: (jnp.zeros((size, *x.shape)), -jnp.ones(size), -jnp.ones(size), 0)


def notes_of(D, x, grid, **options):
    """(points, levels, weights) of all calls; the sampler's answer is the last carry's."""
    N, kept = len(grid) - 1, []
    denoise, blank = noted(D, 2 * N + 1)

    def keeping(x, sigma, guidance, carry):
        D, carry = denoise(x, sigma, guidance, carry)
        jax.debug.callback(lambda *c: kept.append(c), *carry)
        return D, carry

    got = whole.sample(keeping, x, grid, 1.0, blank(x), jnp.arange(N) * 10.0, **options)
    jax.effects_barrier()
    points, levels, weights, n = max(kept, key=lambda carry: int(carry[-1]))
    return got, *(np.asarray(a)[: int(n)] for a in (points, levels, weights))


def white(si):
    """The ideal denoiser of N(0, 1) data."""
    return without_carry(lambda x, sigma: si / (1 + si**2 * sigma**2) * x)


def white_errors(si, N, n=2000, solver="heun"):
    """(sampled, exact) from n starting points at sigma_max.

    The exact flow scales x with its deviation sqrt(1 / si^2 + sigma^2) down to sigma_min, where
    the sampler answers with the ideal estimate.
    """
    start = 80 * np.random.default_rng(0).standard_normal(n).astype(np.float32)
    sampled = whole.sample(white(si), jnp.asarray(start), grid_of(N), si, None, solver=solver)
    deviation = lambda sigma: np.sqrt(1 / si**2 + sigma**2)
    arrived = start * deviation(0.002) / deviation(80.0)
    return np.asarray(sampled), si / (1 + (si * 0.002) ** 2) * arrived


@pytest.mark.parametrize("N", [1, 2, 5])
def test_n_steps_take_2n_minus_1_evaluations_at_the_levels_of_the_grid(N):
    grid = grid_of(N)
    _, _, levels, weights = notes_of(bend(jnp, 1.0), jnp.ones(3), grid)
    np.testing.assert_array_equal(levels, np.concatenate([grid[:1], np.repeat(grid[1:-1], 2)]))
    np.testing.assert_array_equal(weights, np.repeat(10 * np.arange(N), 2)[: 2 * N - 1])


@pytest.mark.parametrize("N", [1, 5])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_euler_and_2m_take_n_evaluations_with_the_guidance_of_each_step(N, solver):
    grid = grid_of(N)
    _, _, levels, weights = notes_of(bend(jnp, 1.0), jnp.ones(3), grid, solver=solver)
    np.testing.assert_array_equal(levels, grid[:-1])
    np.testing.assert_array_equal(weights, 10 * np.arange(N))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_levels_of_all_calls_are_known_before(solver):
    _, _, levels, _ = notes_of(bend(jnp, 1.0), jnp.ones(3), grid_of(4), solver=solver)
    np.testing.assert_array_equal(sampler.call_levels(grid_of(4), solver), levels)


@every_scale
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_sample_is_the_last_estimate_bit_for_bit(si, solver):
    grid = grid_of(3)
    estimate = np.float32([0.1, -0.7, 1 / 3])
    last = without_carry(lambda x, sigma: jnp.where(sigma == grid[2], estimate, x))
    got = whole.sample(last, jnp.ones(3), grid, si, None, solver=solver)
    np.testing.assert_array_equal(got, estimate)


@every_scale
@pytest.mark.parametrize("N", [1, 8])
def test_it_is_edms_sampler_on_the_scaled_data(si, N):
    start, grid = 80 * np.random.default_rng(1).standard_normal(64), grid_of(N)
    D = lambda y, t: bend(np, si)(y, t) / si
    expected, _ = closed_forms.edm_algorithm_2(
        D, start, grid.astype(np.float64), 0, 0, 0, 1, lambda i: 0
    )
    denoise = without_carry(bend(jnp, si))
    got = whole.sample(denoise, jnp.asarray(start, jnp.float32), grid, si, None)
    np.testing.assert_allclose(got, si * expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("S_churn", [0.0, 3.0, 80.0])
def test_without_scaling_it_is_edms_algorithm_2_step_for_step(S_churn):
    """Every point and level at which the denoiser is asked, with churn in a part of the levels."""
    N, grid = 10, grid_of(10)
    start, eps = (np.random.default_rng(s).standard_normal((n, 16)) for s, n in ((1, 1), (2, N)))
    start = 80 * start[0]
    expected, calls = closed_forms.edm_algorithm_2(
        bend(np, 1.0), start, grid.astype(np.float64), S_churn, 0.05, 50.0, 1.007, eps.__getitem__
    )
    noise = jnp.asarray(eps, jnp.float32)
    churn = sampler.Churn(lambda i: noise[i], S_churn, 0.05, 50.0, 1.007)
    start = jnp.asarray(start, jnp.float32)
    got, points, levels, _ = notes_of(bend(jnp, 1.0), start, grid, churn=churn)
    assert len(points) == len(calls) == 2 * N - 1
    for point, level, (point_64, level_64) in zip(points, levels, calls, strict=True):
        assert level == pytest.approx(level_64, rel=1e-6)
        np.testing.assert_allclose(point, point_64, rtol=0, atol=1e-5 * max(1, level_64))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_churn_of_nothing_is_the_deterministic_sampler_bit_for_bit():
    unasked = churn_of(lambda i: jnp.full(64, jnp.nan), S_churn=0.0)
    run = lambda churn: whole.sample(
        without_carry(bend(jnp, 4.0)), jnp.linspace(-90, 90, 64), grid_of(6), 4.0, None, churn=churn
    )
    np.testing.assert_array_equal(run(unasked), run(None))


def test_no_noise_is_asked_for_outside_the_interval_of_churn():
    grid = grid_of(6)
    outside = (grid[:-1] < grid[3]) | (grid[:-1] > grid[1])
    noise = jnp.where(jnp.asarray(outside)[:, None], jnp.nan, jnp.ones((6, 3)))
    run = lambda low: whole.sample(
        white(1.0), jnp.ones(3), grid, 1.0, None,
        churn=sampler.Churn(lambda i: noise[i], 20.0, float(low), float(grid[1]), 1.0),
    )  # fmt: skip
    assert np.isfinite(run(grid[3])).all()
    assert not np.isfinite(run(grid[4])).any()


def test_a_sample_with_its_own_noise_does_not_depend_on_its_batch():
    @jax.jit
    def run(seeds):
        keys = jax.vmap(jax.random.key)(seeds)
        noise = lambda i: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), (5,)))
        churn = churn_of(lambda i: noise(i)(keys), 30.0)
        return whole.sample(
            without_carry(bend(jnp, 4.0)), 80 * noise(99)(keys), grid_of(5), 4.0, None, churn=churn
        )

    np.testing.assert_allclose(run(np.arange(7, 10))[1:], run(np.arange(8, 10)), rtol=0, atol=1e-5)


@every_scale
def test_heun_and_2m_are_of_second_order_and_euler_of_first(si):
    error = {}
    runs = [("heun", 20), ("heun", 40), ("heun", 80), ("dpmpp_2m", 40), ("dpmpp_2m", 80)]
    for solver, N in [*runs, ("dpmpp_2m", 160), ("euler", 40), ("euler", 80)]:
        sampled, exact = white_errors(si, N, solver=solver)
        error[solver, N] = np.abs(sampled - exact).max()
    assert 3.8 < error["heun", 20] / error["heun", 40] < 5.5
    assert 3.8 < error["heun", 40] / error["heun", 80] < 5.5
    assert 3.4 < error["dpmpp_2m", 40] / error["dpmpp_2m", 80] < 5.5
    assert 3.4 < error["dpmpp_2m", 80] / error["dpmpp_2m", 160] < 5.5
    assert 1.7 < error["euler", 40] / error["euler", 80] < 2.3


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_256_steps_sample_white_data_to_three_thousandths(si):
    sampled, exact = white_errors(si, 256, n=20_000)
    assert np.abs(sampled - exact).max() <= 3e-3
    assert abs(sampled.std() - exact.std()) <= 3e-3


def test_a_heun_step_is_exact_where_the_slope_is_linear_in_the_level():
    """D = x - 2 sigma^2 at sigma_in = 1 means dx/dsigma = 2 sigma, so x moves by its integral."""
    denoise = without_carry(lambda x, sigma: x - 2 * sigma**2)
    got = whole.sample(denoise, jnp.float32([5.0]), np.float32([3, 1, 0]), 1.0, None)
    assert got[0] == pytest.approx(5.0 - (3.0**2 - 1.0**2) - 2)


def test_an_euler_step_follows_the_slope_at_its_start():
    denoise = without_carry(lambda x, sigma: jnp.where(sigma == 4, 0.25 * x, x))
    x, grid = jnp.float32([2.0]), np.float32([4, 1, 0])
    got = whole.sample(denoise, x, grid, 2.0, None, solver="euler")
    assert got[0] == pytest.approx(2.0 - 3 * (2.0 - 0.5 / 2) / 4)


@every_scale
def test_2m_is_exact_where_the_estimate_is_constant_however_long_the_steps(si):
    """Then x - D / si shrinks as the level does, which every other solver only approaches."""
    grid, D, x = np.float32([80, 0.5, 0.002, 0]), jnp.float32([0.3, -0.7]), jnp.float32([50, -90])
    denoise = lambda x, sigma, guidance, points: (D, points.at[2 - guidance].set(x))
    inputs = whole.inputs_of(denoise, grid, si, jnp.arange(3), solver="dpmpp_2m")
    start = sampler.start(x, jnp.zeros((3, 2)))
    last, middle, _ = jax.lax.fori_loop(0, 3, sampler.call_of(inputs), start).carry
    np.testing.assert_allclose(middle, D / si + 0.5 / 80 * (x - D / si), rtol=1e-6)
    np.testing.assert_allclose(last, D / si + 0.002 / 80 * (x - D / si), rtol=1e-6)


def test_2m_is_algorithm_2_of_its_paper_on_the_scaled_data():
    start, grid = 80 * np.random.default_rng(1).standard_normal(64), grid_of(9).astype(np.float64)
    expected = closed_forms.dpm_solver_2m(bend(np, 4.0), start, grid, 4.0)
    denoise, x = without_carry(bend(jnp, 4.0)), jnp.asarray(start, jnp.float32)
    got = whole.sample(denoise, x, grid_of(9), 4.0, None, solver="dpmpp_2m")
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_the_program_is_the_same_whatever_the_number_of_steps_and_holds_one_denoiser():
    def size(N):
        asked = []

        def denoise(*args):
            asked.append(N)
            return white(4.0)(*args)

        run = lambda x: whole.sample(denoise, x, grid_of(N), 4.0, None)
        return str(jax.make_jaxpr(run)(jnp.ones(3))).count("\n"), len(asked)

    assert size(4) == size(64)
    assert size(4)[1] == 1


@pytest.mark.parametrize("solver, total", [("heun", 9), ("euler", 5), ("dpmpp_2m", 5)])
def test_a_sampler_that_pauses_is_the_whole_sampler_and_compiled_once(solver, total):
    noise = np.random.default_rng(4).standard_normal((5, 8, 3)).astype(np.float32)
    churn = churn_of(lambda i: jnp.asarray(noise)[i], 10.0) if solver != "dpmpp_2m" else None
    denoise = without_carry(bend(jnp, 4.0))
    inputs = whole.inputs_of(denoise, grid_of(5), 4.0, solver=solver, churn=churn)
    x = jnp.asarray(80 * np.random.default_rng(3).standard_normal((8, 3)), jnp.float32)
    call = sampler.call_of(inputs)
    advance = jax.jit(lambda state, first, last: jax.lax.fori_loop(first, last, call, state))
    assert sampler.num_calls(5, solver) == total
    state = start = sampler.start(x, None)
    for first, last in ((0, 1), (1, 4), (4, total)):
        state = advance(state, first, last)
    paused, unpaused = state.D, jax.jit(lambda start: sampler.sample(inputs, start))(start)
    np.testing.assert_array_equal(paused, unpaused)
    assert advance._cache_size() == 1


def test_a_batch_over_eight_devices_is_sampled_alike():
    mesh = jax.make_mesh((8,), ("data",))
    start = 80 * jnp.asarray(np.random.default_rng(3).standard_normal((8, 4)), jnp.float32)
    noise = np.random.default_rng(4).standard_normal((4, 8, 4)).astype(np.float32)
    churn = churn_of(lambda i: jnp.asarray(noise)[i], 10.0)
    run = lambda x: whole.sample(
        without_carry(bend(jnp, 4.0)), x, grid_of(4), 4.0, None, churn=churn
    )
    split = NamedSharding(mesh, PartitionSpec("data"))
    got = jax.jit(run, in_shardings=split, out_shardings=split)(start)
    np.testing.assert_allclose(got, run(start), rtol=0, atol=1e-6)
