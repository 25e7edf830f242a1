"""Guidance: functions from denoiser to denoiser."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def extrapolate(D_cond: Array, D_uncond: Array, weight: float) -> Array:
    """D = D_cond + w (D_cond - D_uncond) (Ho and Salimans 2022); w = 0 is no guidance."""
    return D_cond + weight * (D_cond - D_uncond)


def interleave(cond, uncond):
    """Two trees of [B, ...] -> one of [2B, ...] in the order c, u, c, u.

    Neighbours stay together, so a batch sharded over devices stays balanced without moving data.
    """

    def pair(c, u):
        return jnp.stack([c, u], axis=1).reshape((2 * c.shape[0],) + c.shape[1:])

    return jax.tree.map(pair, cond, uncond)


def classifier_free(denoise: Callable, cond, uncond, weight: float) -> Callable:
    """(x, sigma, carry) -> (guided D, carry), from denoise(x, sigma, conditions, carry).

    `cond` and `uncond` are trees of [B, ...]; sigma is one level for all. Both halves run as one
    doubled batch, and both receive the carry of the conditional half, which alone is kept (as RIN
    and FIT sample).
    """
    if weight == 0:
        return lambda x, sigma, carry: denoise(x, sigma, cond, carry)
    both = interleave(cond, uncond)

    def guided(x: Float[Array, "B ..."], sigma: Array, carry):
        D, carry = denoise(interleave(x, x), sigma, both, interleave(carry, carry))
        carry = jax.tree.map(lambda latents: latents[0::2], carry)
        return extrapolate(D[0::2], D[1::2], weight), carry

    return guided
