"""Guidance by the text: functions from a model's denoiser to the sampler's.

A model's denoiser is (x_sigma, sigma, conditions, carry) -> (D, carry); the sampler's has the
step's guidance, here the weight w, in place of the conditions. rescale: what the estimate goes
through at last (`threshold.rescaler`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from snapvideo_jax.diffusion.edm import Elements


def extrapolate(D_cond: Elements, D_uncond: Elements, guidance: Elements | float) -> Elements:
    """D = D_cond + w (D_cond - D_uncond), w = guidance (Ho and Salimans 2022); 0 for none."""
    return D_cond + guidance * (D_cond - D_uncond)


def oscillation(
    num_steps: int, guidance: float, guidance_low: float, fraction: float = 0.1
) -> Float[np.ndarray, " N"]:
    """Returns each step's guidance: after the first `fraction`, low at the even steps.

    Oscillating guidance (Imagen Video 2.6.2) keeps the text's hold and loses the saturation of a
    weight that is always high. guidance_low = guidance is constant guidance.
    """
    i = np.arange(num_steps)
    falls = (i / num_steps >= fraction) & (i % 2 == 0)
    return np.where(falls, guidance_low, guidance).astype(np.float32)


def interleave(cond: Any, uncond: Any) -> Any:
    """Joins two trees of [B, ...] to one of [2B, ...] in the order c, u, c, u.

    The two of an example are neighbors, so a batch sharded over devices stays balanced without
    moving data.
    """

    def pair(c: Shaped[Array, "B ..."], u: Shaped[Array, "B ..."]) -> Shaped[Array, "2*B ..."]:
        return jnp.stack([c, u], axis=1).reshape((2 * c.shape[0],) + c.shape[1:])

    return jax.tree.map(pair, cond, uncond)


def conditional(denoise: Callable, cond: Any, rescale: Callable) -> Callable:
    """Returns the sampler's denoiser without guidance, at half its cost."""

    def unguided(x: Float[Array, "B ..."], sigma: Float[Array, ""], guidance: Any, carry: Any):
        D, carry = denoise(x, sigma, cond, carry)
        return rescale(D), carry

    return unguided


def on_interval(
    guided: Callable, unguided: Callable, sigma_min: float, sigma_max: float
) -> Callable:
    """Guides where sigma_min < sigma <= sigma_max (Kynkaanniemi et al. 2024).

    Both arguments are sampler's denoisers with the same guidance and carry. At other levels
    `unguided` alone runs, so that a call costs what it costs without guidance. The carry is that of
    the conditional half either way: it goes through the ends of the interval without a jump.
    """

    def denoise(x: Float[Array, "B ..."], sigma: Float[Array, ""], guidance: Any, carry: Any):
        inside = (sigma_min < sigma) & (sigma <= sigma_max)
        return jax.lax.cond(inside, guided, unguided, x, sigma, guidance, carry)

    return denoise


def classifier_free(denoise: Callable, cond: Any, uncond: Any, rescale: Callable) -> Callable:
    """Returns (x, sigma, guidance, carry) -> (guided D, carry) from trees of [B, ...].

    Both halves run as one doubled batch, and both receive the carry of the conditional half, which
    alone is returned (as RIN and FIT sample). The guidance is traced: it may change by step.
    """
    both = interleave(cond, uncond)

    def guided(
        x: Float[Array, "B ..."], sigma: Float[Array, ""], guidance: Float[Array, ""], carry: Any
    ):
        D, carry = denoise(interleave(x, x), sigma, both, interleave(carry, carry))
        carry = jax.tree.map(lambda latents: latents[0::2], carry)
        return rescale(extrapolate(D[0::2], D[1::2], guidance)), carry

    return guided
