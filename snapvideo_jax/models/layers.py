"""Attention, feed-forward, norms and the scalar embedding that all networks share.

Dtypes: parameters are float32; projections run in `dtype`; layer norms take their statistics,
softmax its exponentials and the residual stream its sums in float32. Every layer is pre-norm and
adds its own residual.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from snapvideo_jax.models.dropout import dropped
from snapvideo_jax.models.patches import group
from snapvideo_jax.models.remat import kept

NORM_EPSILON = 1e-6
GLOROT = nn.initializers.xavier_uniform()  # Keras' default, as in FIT

# (q [*b n A d], k [*b k A d], v, mask [*b k] or None) -> [*b n A d]: `dot_product_attention`, or a
# kernel of the devices in its place.
Attend = Callable[[Array, Array, Array, Array | None], Array]

# Layers whose kernel's outputs, or inputs, belong to heads or hidden units.
BY_OUTPUT = ("q", "k", "v", "gate", "up", "input_conv")
BY_INPUT = ("o", "down", "output_conv")

# Inputs of a device for each number of a kernel, above which its gradient is summed as a whole:
# to turn them around in a TPU's memory takes longer than to send the sum (docs/performance.md).
MANY = 16


def named(x: Array, axes: tuple[Any, ...]) -> Array:
    """x with logical names on its axes, for the sharding that is in force where it is compiled."""
    return with_logical_constraint(x, axes)


def row_major(x: Array, axes: tuple[Any, ...]) -> Array:
    """`named`, with the last axis closest in memory on each device.

    Left alone, the compiler lays a loop's tokens out for the narrow head at its end, and all of the
    blocks work on tokens that lie the wrong way.
    """
    lie = lambda part: with_layout_constraint(part, Layout(tuple(range(x.ndim))))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return lie(x)
    spec = logical_to_mesh_axes(axes)  # the compiler does not know how to split the request
    return jax.shard_map(lie, in_specs=spec, out_specs=spec)(named(x, axes))


def gathered(
    kernel: Float[Array, "... C D"], axes: tuple[str | None, ...], summed: bool = False
) -> Array:
    """A kernel for use: whole, but along axes that have a name.

    Its gradient has none, so that it is summed into the part that each device keeps; `summed`
    makes the sum of it, as whole as the kernel is, before that part is taken.
    """
    return cast(Array, _gathered(kernel, axes, summed))


_gathered = jax.custom_vjp(lambda kernel, axes, summed: named(kernel, axes), nondiff_argnums=(1, 2))
_gathered.defvjp(
    lambda kernel, axes, summed: (named(kernel, axes), None),
    lambda axes, summed, _, slope: (named(slope, axes) if summed else slope,),
)


def product(name: str, of: Callable[..., Array]) -> Callable[..., Array]:
    """The product `of` (inputs [B, ..., C], kernel [..., C, D], ...) for a layer of that name.

    Examples stay where they are and the kernel comes to them. Left alone, the compiler may rather
    move activations to the parts of a kernel that is split over fsdp. And where a device has many
    times more inputs than the kernel has numbers, the gradient is summed as a whole: left alone,
    the compiler makes it part by part, and turns all inputs around in memory to do so.
    """
    taken, made = ("hidden" if name in layers else None for layers in (BY_INPUT, BY_OUTPUT))

    def multiply(inputs: Array, kernel: Array, *how: Any, **more: Any) -> Array:
        anywhere = (PartitionSpec.UNCONSTRAINED,) * (inputs.ndim - 2)
        inputs = named(inputs, ("batch", *anywhere, taken))
        many = inputs.size > MANY * kernel.size * num_devices()
        kernel = gathered(kernel, (None,) * (kernel.ndim - 2) + (taken, made), summed=many)
        return kept(of(inputs, kernel, *how, **more), "product")

    return multiply


def num_devices() -> int:
    """Of the mesh that is in force where this is traced; 1 if there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def wide_bias(
    inputs: Array, kernel: Array, bias: Array | None, *, dtype: jnp.dtype, **how: Any
) -> tuple[Array, Array, Array | None]:
    """How layers promote: the product runs in `dtype`, and the bias is added in its own, float32.

    So the gradient of the bias is summed in float32 too. In bfloat16 the sum over all inputs may be
    rounded at each of them, and takes a TPU without units for it twice as long.
    """
    return inputs.astype(dtype), kernel.astype(dtype), bias


class Dense(nn.Dense):
    """A projection with `wide_bias`."""

    promote_dtype: Callable = wide_bias

    @nn.nowrap
    def __call__(self, inputs: Float[Array, "*b C"]) -> Float[Array, "*b D"]:
        """The output in `dtype`."""
        return super().__call__(inputs).astype(self.dtype)


def dense(
    features: int,
    dtype: jnp.dtype,
    name: str,
    use_bias: bool = True,
    kernel_init: Callable = GLOROT,
) -> Dense:
    """A projection with zero bias."""
    return Dense(
        features,
        use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        dot_general=product(name, jax.lax.dot_general),
        name=name,
    )


def layer_norm(dtype: jnp.dtype, name: str, **kwargs) -> nn.LayerNorm:
    """LayerNorm with scale and bias; statistics in float32, output in `dtype`."""
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, name=name, **kwargs)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), exact, computed in float32; of which only x is kept for the backward pass.

    By erf, since the erfc that jax.nn.gelu takes has two branches, between which a TPU's compiler
    writes a mask of the hidden units to memory.
    """
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def made_once(hidden: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same. Else a TPU's compiler makes the hidden units again for each tile of the product
    that takes them. Their gradient is left alone: what follows is best done where it is made.
    """
    return cast(Array, _made_once(hidden))


_made_once = jax.custom_vjp(jax.lax.optimization_barrier)
_made_once.defvjp(lambda x: (jax.lax.optimization_barrier(x), None), lambda _, slope: (slope,))


class FeedForward(nn.Module):
    """x + Dense(dropout(gelu(Dense(LN(x))))): 4x wide, exact GELU, dropout on the hidden units."""

    dropout: float = 0.0
    ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b n D"], train: bool = False) -> Float[Array, "*b n D"]:
        """Dropout needs the rng stream "dropout" when `train`."""
        normed = layer_norm(self.dtype, "norm")(x)
        hidden = dense(self.ratio * x.shape[-1], self.dtype, "up")(normed)
        hidden = gelu(hidden)
        if train and self.dropout:
            hidden = dropped(hidden, self.dropout, self.make_rng("dropout"))
        return x + dense(x.shape[-1], self.dtype, "down")(made_once(hidden))


def dot_product_attention(
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    mask: Bool[Array, "*b k"] | None = None,
) -> Float[Array, "*b n A d"]:
    """Softmax attention over k, scaled by 1 / sqrt(d), for any number of batch axes."""
    *batch, n, A, d = q.shape
    flat = lambda t: t.reshape((-1,) + t.shape[len(batch) :])
    allowed = None if mask is None else flat(mask)[:, None, None, :]
    return jax.nn.dot_product_attention(flat(q), flat(k), flat(v), mask=allowed).reshape(q.shape)


class Attention(nn.Module):
    """x + MHA(LN(x), LN(context)): cross-attention, or self-attention where context is None.

    The inner width is heads * head_channels; the output projection returns to the width of x.
    Tokens stand in a row, group by group; with `groups` above 1 each sees those of its own alone.
    """

    heads: int
    head_channels: int
    dtype: jnp.dtype = jnp.float32
    attend: Attend = dot_product_attention
    groups: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B K E"] | None = None,
        mask: Bool[Array, "B K"] | None = None,
    ) -> Float[Array, "B N D"]:
        """`mask` is True where a context token may be seen; each row needs one at least."""
        queries = layer_norm(self.dtype, "norm")(x)
        keys = queries if context is None else layer_norm(self.dtype, "context_norm")(context)
        width = self.heads * self.head_channels
        q, k, v = (
            self.split(dense(width, self.dtype, name)(tokens))
            for name, tokens in (("q", queries), ("k", keys), ("v", keys))
        )
        out = kept(self.attend(q, k, v, mask), "attention").reshape(*x.shape[:2], width)
        return x + dense(x.shape[-1], self.dtype, "o")(out)

    def split(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B *G n A d"]:
        """By groups, where there are some, and heads."""
        by_heads = rearrange(tokens, "B N (A d) -> B N A d", A=self.heads)
        return by_heads if self.groups == 1 else group(by_heads, self.groups)


class AttentionBlock(nn.Module):
    """Attention, then a feed-forward: the pair drawn as "XAttn+FF" and "SAttn+FF" in Fig. 3b."""

    heads: int
    head_channels: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    attend: Attend = dot_product_attention
    groups: int = 1

    @nn.compact
    def __call__(self, x, context=None, mask=None, *, train: bool = False):
        """Shapes as `Attention`."""
        sizes = self.heads, self.head_channels, self.dtype, self.attend, self.groups
        x = Attention(*sizes, name="attention")(x, context, mask)
        return FeedForward(self.dropout, dtype=self.dtype, name="feed_forward")(x, train)


def sinusoid(x: Float[Array, " B"], width: int) -> Float[Array, "B D"]:
    """sin and cos of x at `width` / 2 rates from 1 down to 1e-4, standardized over the features."""
    rates = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angles = x.astype(jnp.float32)[:, None] * rates
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    centered = features - features.mean(-1, keepdims=True)
    return centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-12)


class ScalarEmbedding(nn.Module):
    """A number -> one token: sinusoid, Dense, SiLU, Dense, all `channels` wide (RIN)."""

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, " B"]) -> Float[Array, "B D"]:
        """`x` is already scaled to the range that the sinusoid resolves (about 1 to 1e4)."""
        hidden = nn.silu(dense(self.channels, self.dtype, "up")(sinusoid(x, self.channels)))
        return dense(self.channels, self.dtype, "down")(hidden)
