"""The noise law against its formulas, written again in float64, and against EDM at sigma_in = 1."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import edm

SIGMA = np.logspace(-3, 2, 41)
CASES = tuple(itertools.product((0.5, 1.0), (1.0, 2.0, 4.0, 32.0)))  # sigma_data, sigma_in
every_case = pytest.mark.parametrize(("sd", "si"), CASES)


def formulas(s, sd, si):
    """Table 1 and appendix E of the paper, by name, for one or many sigma."""
    return {
        "c_nrm": 1 / (sd * np.sqrt(sd**2 + s**2)),
        "c_in": 1 / np.sqrt(sd**2 / si**2 + s**2),
        "c_skip": si * sd**2 / (si * s**2 + sd**2),
        "c_out": -si * s * sd * np.sqrt(s**2 + sd**2) / (sd**2 + si * s**2),
        "lambda": 1 / sd**2 + 1 / s**2,
        "w": (s**2 + sd**2) ** 2 / (s**2 + sd**2 / si) ** 2,
    }


def ours(s, sd, si):
    """The same quantities from the package."""
    s = jnp.asarray(s)
    return {
        "c_nrm": edm.c_nrm(s, sd),
        "c_in": edm.c_in(s, sd, si),
        "c_skip": edm.c_skip(s, sd, si),
        "c_out": edm.c_out(s, sd, si),
        "lambda": edm.loss_weight(s, sd),
        "w": edm.loss_weight_F(s, sd, si),
    }


def draws(n, seed=0):
    """sigma [41, 1], x and eps [41, n] in float64."""
    rng = np.random.default_rng(seed)
    return SIGMA[:, None], rng.uniform(-1, 1, (41, n)), rng.standard_normal((41, n))


def arrays(*values):
    """The values on the device, in its precision."""
    return tuple(jnp.asarray(value, float) for value in values)


@every_case
def test_coefficients_are_those_of_the_paper(sd, si):
    expected, got = formulas(SIGMA, sd, si), ours(SIGMA.astype(np.float32), sd, si)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_coefficients_have_the_limits_of_no_noise_and_of_noise_alone(si):
    clean, noise = ours(np.float32(1e-6), 1.0, si), ours(np.float32(1e6), 1.0, si)
    assert clean["c_skip"] == pytest.approx(si, rel=1e-4)
    assert clean["w"] == pytest.approx(si**2, rel=1e-4)
    assert noise["c_out"] == pytest.approx(-1, rel=1e-4)
    assert noise["w"] == pytest.approx(1, rel=1e-4)


@every_case
def test_input_and_target_have_unit_variance(sd, si):
    rng = np.random.default_rng(1)
    x, eps = arrays(sd * rng.standard_normal(2**20), rng.standard_normal(2**20))
    for s in arrays(0.02, 0.5, 10.0):
        network_input = edm.c_in(s, sd, si) * edm.add_noise(x, s, eps, si)
        target = edm.c_nrm(s, sd) * edm.velocity(x, s, eps, sd)
        assert np.var(network_input) == pytest.approx(1, abs=0.01)
        assert np.var(target) == pytest.approx(1, abs=0.01)


@every_case
def test_the_network_that_predicts_the_target_denoises_perfectly(sd, si):
    for exact, tolerance in ((False, 2e-6), (True, 1e-13)):
        with jax.enable_x64(exact):
            s, x, eps = arrays(*draws(64))
            F = edm.c_nrm(s, sd) * edm.velocity(x, s, eps, sd)
            D = edm.denoised(edm.add_noise(x, s, eps, si), F, s, sd, si)
            np.testing.assert_allclose(D, x, rtol=0, atol=tolerance)


@every_case
def test_the_weight_of_F_is_the_weight_of_D_times_c_out_squared(sd, si):
    with jax.enable_x64(True):
        (s,) = arrays(SIGMA)
        weight = edm.loss_weight(s, sd) * edm.c_out(s, sd, si) ** 2
        np.testing.assert_allclose(edm.loss_weight_F(s, sd, si), weight, rtol=1e-13)


@every_case
def test_the_loss_on_F_is_the_weighted_loss_on_D(sd, si):
    s, x, eps = draws(256)
    F = np.random.default_rng(2).standard_normal(x.shape)
    of = formulas(s, sd, si)
    D = of["c_skip"] * (x / si + s * eps) + of["c_out"] * F
    expected = np.mean(of["lambda"] * (D - x) ** 2, axis=1)
    got = edm.loss_F(*arrays(F, x, eps, SIGMA), sd, si)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_loss_is_a_mean_over_each_example_alone():
    rng = np.random.default_rng(3)
    F, x, eps = arrays(*rng.standard_normal((3, 4, 2, 3, 5, 3)))
    sigma = jnp.array([0.1, 0.5, 1, 3])
    whole = edm.loss_F(F, x, eps, sigma, 1.0, 4.0)
    parts = [edm.loss_F(*(a[i : i + 1] for a in (F, x, eps, sigma)), 1.0, 4.0) for i in range(4)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6)


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_without_input_scaling_it_is_edm_with_the_sign_of_F_reversed(sd):
    s, got = SIGMA, ours(SIGMA.astype(np.float32), sd, 1.0)
    total = s**2 + sd**2
    edms = {
        "c_skip": sd**2 / total,
        "c_out": -s * sd / np.sqrt(total),
        "c_in": 1 / np.sqrt(total),
        "lambda": total / (s * sd) ** 2,
        "w": np.ones_like(s),
    }
    for name in edms:
        np.testing.assert_allclose(got[name], edms[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_without_input_scaling_the_loss_is_edms_for_the_opposite_F(sd):
    s, x, eps = draws(256)
    F = np.random.default_rng(4).standard_normal(x.shape)
    total = s**2 + sd**2
    D = sd**2 / total * (x + s * eps) + s * sd / np.sqrt(total) * -F
    expected = np.mean(total / (s * sd) ** 2 * (D - x) ** 2, axis=1)
    got = edm.loss_F(*arrays(F, x, eps, SIGMA), sd, 1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@every_case
def test_the_best_linear_network_is_the_posterior_mean_of_white_data(sd, si):
    """The optimum is F = rho c_in x_sigma, rho the correlation of input and target."""
    s = SIGMA.astype(np.float32)
    of = ours(s, sd, si)
    rho = sd**2 * s * (1 - 1 / si) * of["c_in"] * of["c_nrm"]
    D = of["c_skip"] + of["c_out"] * rho * of["c_in"]
    np.testing.assert_allclose(D, si * sd**2 / (sd**2 + si**2 * SIGMA**2), rtol=1e-5)


@every_case
def test_input_and_target_correlate_as_predicted(sd, si):
    rng = np.random.default_rng(5)
    x, eps = arrays(sd * rng.standard_normal(2**16), rng.standard_normal(2**16))
    s = jnp.float32(sd / np.sqrt(si))  # where the correlation is largest
    found = np.corrcoef(edm.add_noise(x, s, eps, si), edm.velocity(x, s, eps, sd))[0, 1]
    assert found == pytest.approx((si - 1) / (si + 1), abs=0.01)


@pytest.mark.parametrize(("frames", "side"), [(16, 1), (4, 2), (16, 4)])
def test_scaling_gives_a_still_video_the_signal_to_noise_ratio_of_one_pixel(frames, side):
    n, pixels, sd, sigma = 2000, frames * side**2, 1.0, 0.7
    si = side * np.sqrt(frames)
    rng = np.random.default_rng(6)
    x = np.repeat(sd * rng.standard_normal((n, 1)), pixels, axis=1)
    clean, level, eps = arrays(x, sigma, rng.standard_normal((n, pixels)))
    noisy = np.asarray(edm.add_noise(clean, level, eps, float(si)))
    noise = noisy.mean(axis=1) - x[:, 0] / si
    assert np.var(x[:, 0] / si) / np.var(noise) == pytest.approx(sd**2 / sigma**2, rel=0.1)


def test_the_slope_of_the_ode_at_the_true_x_is_the_noise():
    s, x, eps = arrays(*draws(16))
    slope = edm.ode_slope(edm.add_noise(x, s, eps, 4.0), x, s, 4.0)
    np.testing.assert_allclose(slope[SIGMA > 0.1], eps[SIGMA > 0.1], atol=1e-5)


def test_the_input_for_the_noise_level_is_a_quarter_of_ln_sigma():
    np.testing.assert_allclose(edm.c_noise(jnp.log(SIGMA)), np.log(SIGMA) / 4, rtol=1e-6)


def test_expand_puts_the_batch_in_front():
    assert edm.expand(jnp.ones(3), jnp.zeros((3, 2, 4, 5, 3))).shape == (3, 1, 1, 1, 1)


def test_pixels_survive_the_way_to_the_models_range_and_back():
    pixels = jnp.arange(256, dtype=jnp.uint8)
    x = edm.from_pixels(pixels)
    assert x[0] == -1 and x[255] == 1 and x.dtype == np.float32
    np.testing.assert_array_equal(edm.to_pixels(x), pixels)
    np.testing.assert_array_equal(edm.to_pixels(jnp.array([-1.5, 1.5])), [0, 255])
