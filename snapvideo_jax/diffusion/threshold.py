"""Dynamic thresholding: estimates that guidance drove out of range come back into [-1, 1].

Per video, as Imagen does it (Saharia et al. 2022, 2.3; paper 3.6 names it). The percentile comes
from counting, not by sorting: 31 passes that each halve the interval of bit patterns that may hold
it. Counts are integers, so the result is exact and bit for bit the same however the batch, the
rows and the columns are sharded, and no device ever gathers a video.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from snapvideo_jax.diffusion.edm import expand


def rescaler(percentile: float) -> Callable[[Array], Array]:
    """Returns what an estimate D goes through: `rescale`, or nothing where `percentile` is 0."""
    return functools.partial(rescale, percentile=percentile) if percentile else lambda D: D


def rescale(D: Float[Array, "B ..."], percentile: float) -> Float[Array, "B ..."]:
    """D = clip(D, -s, s) / s, with s the percentile of a video's |D|, at least 1."""
    s = expand(jnp.maximum(quantile(jnp.abs(D), percentile), 1), D)
    return jnp.clip(D, -s, s) / s


def quantile(a: Float[Array, "B ..."], q: float) -> Float[Array, " B"]:
    """Returns each example's quantile (NumPy's linear); float32 a >= 0, below 2^31 numbers each.

    Both neighbors are exact; the line between them is rounded to float32.
    """
    size = math.prod(a.shape[1:])
    position = q * (size - 1)
    rank = math.floor(position)
    bits = jax.lax.bitcast_convert_type(a, jnp.int32)
    low_bits = _order_statistic(bits, rank)
    low = jax.lax.bitcast_convert_type(low_bits, jnp.float32)
    above = bits > expand(low_bits, bits)
    smallest_above = jnp.min(jnp.where(above, a, jnp.inf), axis=range(1, a.ndim))
    # The next in order is `low` again where that occurs often enough, or is the largest.
    again = _count(~above) >= min(rank + 2, size)
    high = jnp.where(again, low, smallest_above)
    return low + (position - rank) * (high - low)


def _order_statistic(bits: Int[Array, "B ..."], rank: int) -> Int[Array, " B"]:
    """Returns the bits of the number with `rank` numbers before it: the most with no more below.

    Numbers that are not negative are ordered as their bits are.
    """

    def settle(k: Int[Array, ""], prefix: Int[Array, " B"]) -> Int[Array, " B"]:
        candidate = prefix | (1 << (30 - k))
        return jnp.where(_count(bits < expand(candidate, bits)) <= rank, candidate, prefix)

    return jax.lax.fori_loop(0, 31, settle, jnp.zeros(bits.shape[0], jnp.int32))


def _count(true: Bool[Array, "B ..."]) -> Int[Array, " B"]:
    """Counts the numbers of each example that are True."""
    return jnp.sum(true, axis=range(1, true.ndim), dtype=jnp.int32)
