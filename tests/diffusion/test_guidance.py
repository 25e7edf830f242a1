"""Classifier-free guidance, with denoisers whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import edm, guidance, threshold
from tests.diffusion import whole

RNG = np.random.default_rng(0)
PLAIN = threshold.rescaler(0.0)
X = jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32)
COND = {"text": jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32)}
SIGMA = jnp.float32(0.5)
UNCOND = {"text": jnp.zeros((3, 5))}
CARRY = jnp.asarray(RNG.standard_normal((3, 2)), jnp.float32)


def denoise(x, sigma, given, carry):
    """Depends on every argument, example by example; the new carry depends on the condition."""
    memory = carry.sum(axis=-1, keepdims=True)
    return x * sigma + given["text"] + memory, carry + given["text"][:, :2] + 1


@pytest.mark.parametrize(("w", "expected"), [(0.0, 3.0), (1.0, 5.0), (-1.0, 1.0), (7.5, 18.0)])
def test_weight_w_goes_w_times_the_difference_beyond_the_condition(w, expected):
    got = guidance.extrapolate(jnp.float32(3), jnp.float32(1), w)
    assert got == pytest.approx(expected)


def test_interleaved_examples_stand_beside_their_twins():
    both = guidance.interleave({"a": jnp.array([[1], [2]])}, {"a": jnp.array([[-1], [-2]])})
    np.testing.assert_array_equal(both["a"], [[1], [-1], [2], [-2]])


def counted(sizes):
    def denoise_counted(x, *rest):
        sizes.append(len(x))
        return denoise(x, *rest)

    return denoise_counted


def test_without_guidance_the_conditional_denoiser_runs_on_the_batch_alone():
    sizes = []
    D, carry = guidance.conditional(counted(sizes), COND, PLAIN)(X, SIGMA, None, CARRY)
    expected = denoise(X, SIGMA, COND, CARRY)
    np.testing.assert_array_equal(D, expected[0])
    np.testing.assert_array_equal(carry, expected[1])
    assert sizes == [3]


@pytest.mark.parametrize("w", [0.0, 1.0, 7.5])
def test_one_doubled_batch_equals_two_evaluations_with_the_conditional_carry(w):
    D, carry = guidance.classifier_free(denoise, COND, UNCOND, PLAIN)(
        X, SIGMA, jnp.float32(w), CARRY
    )
    D_cond, carry_cond = denoise(X, SIGMA, COND, CARRY)
    D_uncond, _ = denoise(X, SIGMA, UNCOND, CARRY)
    np.testing.assert_allclose(D, D_cond + w * (D_cond - D_uncond), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(carry, carry_cond)


def test_the_doubled_batch_is_evaluated_once():
    sizes = []
    guidance.classifier_free(counted(sizes), COND, UNCOND, PLAIN)(X, SIGMA, jnp.float32(2), CARRY)
    assert sizes == [6]


@pytest.mark.parametrize("w", [0.5, 16.0])
def test_where_the_condition_says_nothing_no_weight_changes_anything(w):
    D, _ = guidance.classifier_free(denoise, COND, COND, PLAIN)(X, SIGMA, jnp.float32(w), CARRY)
    np.testing.assert_array_equal(D, denoise(X, SIGMA, COND, CARRY)[0])


def test_after_its_first_part_an_oscillation_is_low_at_even_steps():
    h, l = 7.5, 1.0
    expected = np.float32([h, h, h, h, l, h, l, h, l, h])
    got = guidance.oscillation(10, h, l, 0.3)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.float32


@pytest.mark.parametrize(("N", "first"), [(256, 26), (40, 4), (100, 10), (1, 0)])
def test_the_first_tenth_of_the_steps_is_high_by_default(N, first):
    weights = guidance.oscillation(N, 2.0, 1.0)
    low = np.flatnonzero(weights == 1)
    np.testing.assert_array_equal(low, np.arange(first, N, 2) if N > 1 else [])


def test_the_sampler_guides_each_step_by_its_own_weight():
    """Each estimate is its weight, and the carry adds them up: two a step, one in the last."""
    says = lambda x, sigma, text, carry: (jnp.broadcast_to(text, x.shape), carry)
    guided = guidance.classifier_free(says, jnp.ones((2, 1)), jnp.zeros((2, 1)), PLAIN)

    def summing(x, sigma, weight, total):
        D, total = guided(x, sigma, weight, total)
        return total + D, total + D

    start, grid = jnp.zeros((2, 1)), np.float32([4, 2, 1, 0])
    got = whole.sample(summing, start, grid, 1.0, start, jnp.arange(3.0))
    np.testing.assert_allclose(got, np.full((2, 1), 1 + 1 + 2 + 2 + 3))


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_guiding_F_and_guiding_D_are_the_same(si):
    F_cond, F_uncond, x = jnp.asarray(RNG.standard_normal((3, 64)), jnp.float32)
    for sigma in jnp.array([0.01, 0.5, 20.0]):
        D = lambda F, s=sigma: edm.denoised(x, F, s, 1.0, si)
        of_F = D(guidance.extrapolate(F_cond, F_uncond, 3.0))
        of_D = guidance.extrapolate(D(F_cond), D(F_uncond), 3.0)
        np.testing.assert_allclose(of_F, of_D, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.9, 5.0), (1.0, 4.0), (5.0, 6.0)])
def test_outside_of_the_interval_only_the_conditional_half_runs(low, high):
    rows = []
    noted = lambda size: lambda: rows.append(size)

    def counted(x, sigma, text, carry):
        jax.debug.callback(noted(len(x)))
        return x * sigma / 9 + text["text"] + carry[:, :1], carry + text["text"][:, :2]

    guided = guidance.classifier_free(counted, COND, UNCOND, PLAIN)
    unguided = guidance.conditional(counted, COND, PLAIN)
    between = guidance.on_interval(guided, unguided, low, high)
    for sigma in (4.0, 1.0, 0.9):
        rows.clear()
        got = jax.jit(between)(X, jnp.float32(sigma), jnp.float32(2), CARRY)
        jax.effects_barrier()
        inside = low < sigma <= high
        assert rows == [6 if inside else 3]
        expected = (guided if inside else unguided)(X, jnp.float32(sigma), jnp.float32(2), CARRY)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)
