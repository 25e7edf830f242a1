"""Dropout whose masks are nearly free, and the same however the devices split the activations.

A word of jax.random's own for each element takes a TPU longer than the product whose outputs are
dropped. So each row gets only two of them, and a hash of these and of the column is the mask.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

STRIDE = 0x9E3779B9  # 2^32 over the golden ratio: neighboring columns start far apart
MIX = 0x85EBCA6B, 0xC2B2AE35  # MurmurHash3's 32-bit finalizer (Appleby, public domain)


def dropout(x: Float[Array, "*b D"], rate: float, key: PRNGKeyArray) -> Float[Array, "*b D"]:
    """Sets a share `rate` of x's elements to 0 and scales the rest up to the same mean."""
    words = jax.random.bits(key, (2, *x.shape[:-1]), jnp.uint32)
    return _apply(x, rate, checkpoint_name(words, "dropout"))


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def _apply(
    x: Float[Array, "*b D"], rate: float, words: UInt32[Array, "2 *b"]
) -> Float[Array, "*b D"]:
    """Masks x; the backward pass hashes again, which costs less than to store and read a mask."""
    return jnp.where(mask(words, x.shape[-1], 1 - rate), x / (1 - rate), 0).astype(x.dtype)


def mask(words: UInt32[Array, "2 *b"], width: int, share: float) -> Bool[Array, "*b width"]:
    """Returns True for a share of each row's `width` elements; its two words choose which."""
    first, second = words[..., None]
    columns = jnp.arange(width, dtype=jnp.uint32) * jnp.uint32(STRIDE)
    h = first + jnp.expand_dims(columns, range(words.ndim - 1))
    h = (h ^ h >> 16) * jnp.uint32(MIX[0])
    h = (h ^ h >> 13 ^ second) * jnp.uint32(MIX[1])
    return h < jnp.uint32(min(round(share * 2**32), 2**32 - 1))
