"""Classifier-free guidance, with denoisers whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.diffusion import edm, guidance

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5)).astype(np.float32)
COND = {"text": RNG.standard_normal((3, 5)).astype(np.float32)}
UNCOND = {"text": np.zeros((3, 5), np.float32)}
CARRY = RNG.standard_normal((3, 2)).astype(np.float32)


def denoise(x, sigma, given, carry):
    """Depends on every argument, example by example; the new carry depends on the condition."""
    memory = carry.sum(axis=-1, keepdims=True)
    return x * sigma + given["text"] + memory, carry + given["text"][:, :2] + 1


@pytest.mark.parametrize(("w", "expected"), [(0.0, 3.0), (1.0, 5.0), (-1.0, 1.0), (7.5, 18.0)])
def test_weight_w_goes_w_times_the_difference_beyond_the_condition(w, expected):
    assert guidance.extrapolate(3.0, 1.0, w) == pytest.approx(expected)


def test_interleaved_examples_stand_beside_their_twins():
    both = guidance.interleave({"a": jnp.array([[1], [2]])}, {"a": jnp.array([[-1], [-2]])})
    np.testing.assert_array_equal(both["a"], [[1], [-1], [2], [-2]])


def test_weight_zero_is_the_conditional_denoiser_on_the_batch_alone():
    sizes = []

    def counted(x, *rest):
        sizes.append(len(x))
        return denoise(x, *rest)

    D, carry = guidance.classifier_free(counted, COND, UNCOND, 0.0)(X, 0.5, CARRY)
    expected = denoise(X, 0.5, COND, CARRY)
    np.testing.assert_array_equal(D, expected[0])
    np.testing.assert_array_equal(carry, expected[1])
    assert sizes == [3]


@pytest.mark.parametrize("w", [1.0, 7.5])
def test_one_doubled_batch_equals_two_evaluations_with_the_conditional_carry(w):
    D, carry = guidance.classifier_free(denoise, COND, UNCOND, w)(X, 0.5, CARRY)
    D_cond, carry_cond = denoise(X, 0.5, COND, CARRY)
    D_uncond, _ = denoise(X, 0.5, UNCOND, CARRY)
    np.testing.assert_allclose(D, D_cond + w * (D_cond - D_uncond), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(carry, carry_cond)


def test_the_doubled_batch_is_evaluated_once():
    sizes = []

    def counted(x, *rest):
        sizes.append(len(x))
        return denoise(x, *rest)

    guidance.classifier_free(counted, COND, UNCOND, 2.0)(X, 0.5, CARRY)
    assert sizes == [6]


@pytest.mark.parametrize("w", [0.5, 16.0])
def test_where_the_condition_says_nothing_no_weight_changes_anything(w):
    D, _ = guidance.classifier_free(denoise, COND, COND, w)(X, 0.5, CARRY)
    np.testing.assert_array_equal(D, denoise(X, 0.5, COND, CARRY)[0])


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_guiding_F_and_guiding_D_are_the_same(si):
    F_cond, F_uncond = RNG.standard_normal((2, 64)).astype(np.float32)
    x = RNG.standard_normal(64).astype(np.float32)
    for sigma in (0.01, 0.5, 20.0):
        D = lambda F, s=sigma: edm.denoised(x, F, s, 1.0, si)
        of_F = D(guidance.extrapolate(F_cond, F_uncond, 3.0))
        of_D = guidance.extrapolate(D(F_cond), D(F_uncond), 3.0)
        np.testing.assert_allclose(of_F, of_D, rtol=1e-5, atol=1e-5)
