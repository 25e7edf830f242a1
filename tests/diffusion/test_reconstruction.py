"""Reconstruction guidance, on linear denoisers and on a pair whose conditional mean is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import guidance, reconstruction, threshold
from snapvideo_jax.diffusion.reconstruction import Guidance, Known
from tests.diffusion import whole

RNG = np.random.default_rng(0)
B, T, P = 3, 4, 2  # examples, frames, numbers a frame
draw = lambda *shape: jnp.asarray(RNG.standard_normal(shape), jnp.float32)
X, GIVEN, EPS = draw(B, T, P), draw(B, T, P), draw(B, T, P)
COND, UNCOND = draw(B, T * P, T * P) / 3, draw(B, T * P, T * P) / 3
MASK = np.array([True, False, True, False])
CARRY = draw(B, 1, 1)
SIGMA, SI = jnp.float32(0.7), 4.0
PLAIN = threshold.rescaler(0.0)


def linear(x, sigma, A, carry):
    """D = A z + carry, example by example; the new carry counts on."""
    D = jnp.einsum("bij,bj->bi", A, x.reshape(len(x), -1)).reshape(x.shape)
    return D + carry, carry + 1


def run(cond=COND, uncond=None, mask=MASK, given=GIVEN, eps=EPS, w=0.0, w_r=1.0):
    known = Known(jnp.asarray(mask), given, eps)
    guided = reconstruction.guide(linear, cond, uncond, PLAIN, known, SI)
    return guided(X, SIGMA, Guidance(jnp.float32(w), jnp.float32(w_r)), CARRY)


def by_hand(mask, w_r, w=0.0, uncond=None):
    """D_b + w (D_b - U_b) + w_r / sigma_in A_ab^T (x_a - D_a) in NumPy; x_a where it is known."""
    expected = np.zeros((B, T * P))
    for b in range(B):
        known = np.repeat(mask[b], P)
        given, eps = GIVEN[b].reshape(-1), EPS[b].reshape(-1)
        z = np.where(known, given / SI + SIGMA * eps, X[b].reshape(-1)).astype(np.float64)
        D = COND[b] @ z + CARRY[b, 0]
        lead = w_r / SI * COND[b][known].T @ (given - D)[known]
        if uncond is not None:
            D = D + w * (D - (uncond[b] @ z + CARRY[b, 0]))
        expected[b] = np.where(known, given, D + lead)
    return expected.reshape(B, T, P)


@pytest.mark.parametrize("w_r", [0.0, 1.0, 9.0])
def test_a_linear_denoiser_is_led_by_its_own_transpose(w_r):
    D, _ = run(w_r=w_r)
    np.testing.assert_allclose(D, by_hand(np.tile(MASK, (B, 1)), w_r), rtol=0, atol=1e-5)


def test_each_example_may_know_other_frames():
    mask = np.array([MASK, ~MASK, [False] * T])
    D, _ = run(mask=mask, w_r=2.0)
    np.testing.assert_allclose(D, by_hand(mask, 2.0), rtol=0, atol=1e-5)


def test_with_text_guidance_the_gradient_is_the_conditional_branchs():
    D, _ = run(uncond=UNCOND, w=3.0, w_r=2.0)
    expected = by_hand(np.tile(MASK, (B, 1)), 2.0, 3.0, UNCOND)
    np.testing.assert_allclose(D, expected, rtol=0, atol=3e-5)


def test_where_nothing_is_known_it_is_classifier_free_guidance():
    D, carry = run(uncond=UNCOND, mask=np.zeros(T, bool), w=3.0)
    classifier_free = guidance.classifier_free(linear, COND, UNCOND, PLAIN)
    expected, expected_carry = classifier_free(X, SIGMA, jnp.float32(3), CARRY)
    np.testing.assert_allclose(D, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(carry, expected_carry)


def test_known_frames_are_answered_bit_for_bit_and_the_carry_is_the_conditional_one():
    D, carry = run(uncond=UNCOND, w=3.0)
    np.testing.assert_array_equal(np.asarray(D)[:, MASK], GIVEN[:, MASK])
    np.testing.assert_array_equal(carry, CARRY + 1)


def test_what_is_given_for_unknown_frames_is_never_read():
    hole = lambda a: jnp.where(MASK[None, :, None], a, jnp.nan)
    D, _ = run(given=hole(GIVEN), eps=hole(EPS), uncond=UNCOND)
    np.testing.assert_array_equal(D, run(uncond=UNCOND)[0])


def test_the_sampler_walks_known_frames_along_their_own_noise_and_ends_on_them():
    known = Known(jnp.asarray(MASK), GIVEN, EPS)
    guided, seen = reconstruction.guide(linear, COND, UNCOND, PLAIN, known, SI), []

    def noting(x, sigma, weights, carry):
        jax.debug.callback(lambda *a: seen.append(a), x, sigma, weights.known)
        return guided(x, sigma, weights, carry)

    grid = np.float32([10, 3, 1, 0.1, 0])
    start = known.insert(10 * X, jnp.asarray(grid[0]), SI)
    weights = Guidance(jnp.ones(4), 1 + jnp.arange(4.0))
    got = whole.sample(noting, start, grid, SI, CARRY, weights)
    jax.effects_barrier()
    assert len(seen) == 7
    assert sorted(float(w_r) for _, _, w_r in seen) == [1, 1, 2, 2, 3, 3, 4]
    for x, sigma, _ in seen:
        path = GIVEN / SI + sigma * EPS
        np.testing.assert_allclose(x[:, MASK], path[:, MASK], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(got)[:, MASK], GIVEN[:, MASK])


R = 0.9
PAIR = np.array([[1, R], [R, 1]])


def errors(sigma, si, weights):
    """Distance to E[x_b | z, x_a] for each weight: two frames of one number, correlation R."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4096, 2)) @ np.linalg.cholesky(PAIR).T
    eps = rng.standard_normal((4096, 2))
    z, noise = x / si + sigma * eps, sigma**2 * np.eye(2)
    seen = np.block([[PAIR / si**2 + noise, PAIR[:, :1] / si], [PAIR[:1] / si, PAIR[:1, :1]]])
    best = np.append(z, x[:, :1], axis=1) @ np.linalg.solve(seen, np.append(PAIR[1] / si, R))
    A = np.float32(PAIR / si @ np.linalg.inv(PAIR / si**2 + noise))
    denoise = lambda x, sigma, given, carry: (x @ A.T, carry)
    known = Known(jnp.array([True, False]), jnp.asarray(x, float), jnp.asarray(eps, float))
    guided = reconstruction.guide(denoise, None, None, PLAIN, known, si)
    run = jax.jit(
        lambda z, w: guided(z, jnp.float32(sigma), Guidance(jnp.float32(0), w), ())[0][:, 1]
    )
    return [np.sqrt(np.mean((run(np.float32(z), np.float32(w)) - best) ** 2)) for w in weights]


LEVELS = [0.05, 0.1, 0.2, 0.5, 1.0]


@pytest.mark.parametrize("si", [1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.01, *LEVELS, 5.0])
def test_weight_one_always_brings_the_unknown_frame_closer(sigma, si):
    none, one = errors(sigma, si, [0, 1])
    assert one < none


@pytest.mark.parametrize("sigma", LEVELS)
def test_without_scaling_a_weight_of_one_and_a_half_halves_the_error(sigma):
    none, led = errors(sigma, 1.0, [0, 1.5])
    assert led < none / 2


@pytest.mark.parametrize("si", [1.0, 4.0])
@pytest.mark.parametrize("sigma", [*LEVELS, 2.0])
def test_a_weight_that_grows_with_the_noise_halves_the_error_at_every_scale(sigma, si):
    """The factor is what a variance of x_a of sigma^2 sigma_in^2 leaves out: that of the data."""
    none, led = errors(sigma, si, [0, 1 + (sigma * si) ** 2])
    assert led < none / 2


MEASURED = {
    0.05: [0.029, 0.004, 0.020, 0.19],
    0.2: [0.37, 0.21, 0.043, 1.10],
    1.0: [0.84, 0.79, 0.75, 0.42],
}


@pytest.mark.parametrize("sigma", MEASURED)
def test_constant_weights_err_as_was_computed_apart(sigma):
    np.testing.assert_allclose(errors(sigma, 4.0, [0, 1, 2, 9]), MEASURED[sigma], rtol=0.1)
