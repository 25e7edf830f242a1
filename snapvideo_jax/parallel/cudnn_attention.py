"""Attention on an NVIDIA GPU by cuDNN, forward and backward: the scores stay on the chip.

A mask would go to cuDNN as an array of all scores, with a gradient of that size. But softmax knows
no order of keys: those that a mask hides are moved behind the others, and cuDNN gets their number.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float

DTYPES = (jnp.bfloat16, jnp.float16)
MAX_HEAD_CHANNELS = 128  # from Hopper on JAX allows 256; no network here has that many
MAX_SEQUENCES = 65_535  # of one call: there two of the three axes of a CUDA grid end
# Rows and columns of scores that a kernel has at a time. Where they are not full, some versions of
# cuDNN give NaN gradients, unless they are told the lengths (NVIDIA/cudnn-frontend issue 160).
TILE = 128


@functools.cache
def runs_on(device: jax.Device) -> bool:
    """Returns whether cuDNN attends on a device, by running a small gradient there.

    It does not on other devices than NVIDIA's from Ampere on, nor where cuDNN is missing or old.
    """
    if device.platform != "gpu":
        return False
    tokens = jax.device_put(jnp.ones((1, TILE // 2, 1, 64), jnp.bfloat16), device)
    total = lambda q: jnp.sum(attention(q, q, q).astype(jnp.float32))
    try:
        jax.block_until_ready(jax.jit(jax.grad(total))(tokens))
    except RuntimeError:  # JAX's, where it finds no cuDNN, and the compiler's
        return False
    return True


def fits(q: Any, k: Any) -> bool:
    """Returns whether cuDNN takes q [*b n A d] and k [*b k A d], both of known sizes."""
    if any(map(is_symbolic_dim, (*q.shape, *k.shape))):
        return False
    *batch, _, _, d = q.shape
    halves = q.dtype in DTYPES and k.dtype == q.dtype
    return halves and d % 8 == 0 and d <= MAX_HEAD_CHANNELS and math.prod(batch) <= MAX_SEQUENCES


def attention(
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    mask: Bool[Array, "*b k"] | None = None,
) -> Float[Array, "*b n A d"]:
    """out = softmax(q k^T / sqrt(d)) v, over the keys where `mask` is True."""
    n, keys = q.shape[-3], k.shape[-3]
    flat = lambda x: x.reshape(-1, *x.shape[-3:])
    lengths = None
    if mask is not None:
        k, v = (visible_first(x, mask) for x in (k, v))
        lengths = jnp.sum(mask, axis=-1, dtype=jnp.int32).reshape(-1)
    elif n % TILE or keys % TILE:
        lengths = jnp.full(math.prod(q.shape[:-3]), keys, jnp.int32)
    out = jax.nn.dot_product_attention(
        flat(q), flat(k), flat(v), key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out.reshape(q.shape)


def visible_first(
    tokens: Float[Array, "*b k A d"], mask: Bool[Array, "*b k"]
) -> Float[Array, "*b k A d"]:
    """Moves the tokens where `mask` is True to the front, in order, and zeros behind them.

    So nothing that cuDNN may write as the gradient of hidden tokens gets any further.
    """
    order = jnp.argsort(~mask, axis=-1, stable=True)
    moved = jnp.take_along_axis(tokens, order[..., None, None], axis=-3)
    visible = jnp.take_along_axis(mask, order, axis=-1)
    return jnp.where(visible[..., None, None], moved, 0)
