"""Guidance by the text: functions from a model's denoiser to the sampler's.

A model's denoiser is (x_sigma, sigma, conditions, carry) -> (D, carry); the sampler's has a control
of the step in place of the conditions, here the weight w.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def extrapolate(D_cond: Array, D_uncond: Array, weight: Array | float) -> Array:
    """D = D_cond + w (D_cond - D_uncond) (Ho and Salimans 2022); w = 0 is no guidance."""
    return D_cond + weight * (D_cond - D_uncond)


def oscillation(
    num_steps: int, high: float, low: float, fraction: float = 0.1
) -> Float[np.ndarray, " N"]:
    """Returns each step's weight: high for the first `fraction`, then low if even, high if odd.

    Oscillating guidance (Imagen Video 2.6.2) keeps the text's hold and loses the saturation of a
    weight that is always high. low = high is constant guidance.
    """
    i = np.arange(num_steps)
    falls = (i / num_steps >= fraction) & (i % 2 == 0)
    return np.where(falls, low, high).astype(np.float32)


def interleave(cond, uncond):
    """Joins two trees of [B, ...] to one of [2B, ...] in the order c, u, c, u.

    The two of an example are neighbors, so a batch sharded over devices stays balanced without
    moving data.
    """

    def pair(c, u):
        return jnp.stack([c, u], axis=1).reshape((2 * c.shape[0],) + c.shape[1:])

    return jax.tree.map(pair, cond, uncond)


def conditional(denoise: Callable, cond) -> Callable:
    """Returns the sampler's denoiser without guidance, at half its cost."""
    return lambda x, sigma, control, carry: denoise(x, sigma, cond, carry)


def on_interval(
    guided: Callable, unguided: Callable, sigma_min: float, sigma_max: float
) -> Callable:
    """Guides where sigma_min < sigma <= sigma_max (Kynkaanniemi et al. 2024).

    Both arguments are sampler's denoisers with the same control and carry. At other levels
    `unguided` alone runs, so that a call costs what it costs without guidance. The carry is that of
    the conditional half either way: it goes through the ends of the interval without a jump.
    """

    def denoise(x: Float[Array, "B ..."], sigma: Float[Array, ""], control, carry):
        inside = (sigma_min < sigma) & (sigma <= sigma_max)
        return jax.lax.cond(inside, guided, unguided, x, sigma, control, carry)

    return denoise


def classifier_free(denoise: Callable, cond, uncond) -> Callable:
    """Returns (x, sigma, weight, carry) -> (guided D, carry) from trees of [B, ...].

    Both halves run as one doubled batch, and both receive the carry of the conditional half, which
    alone is returned (as RIN and FIT sample). The weight is traced: it may change by step.
    """
    both = interleave(cond, uncond)

    def guided(x: Float[Array, "B ..."], sigma: Array, weight: Float[Array, ""], carry):
        D, carry = denoise(interleave(x, x), sigma, both, interleave(carry, carry))
        carry = jax.tree.map(lambda latents: latents[0::2], carry)
        return extrapolate(D[0::2], D[1::2], weight), carry

    return guided
