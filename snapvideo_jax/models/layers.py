"""Attention, feed-forward, norms and the scalar embedding that all networks share.

Dtypes: parameters are float32; projections run in `dtype`; layer norms take their statistics,
softmax its exponentials and the residual stream its sums in float32. Every layer is pre-norm and
adds its own residual.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Real, Shaped

from snapvideo_jax.models.dropout import dropout
from snapvideo_jax.models.patches import group
from snapvideo_jax.models.remat import save_bits

NORM_EPSILON = 1e-6


def glorot(scale: float) -> Callable[..., Array]:
    """Returns Glorot's uniform initialization times `scale`."""
    return nn.initializers.variance_scaling(scale**2, "fan_avg", "uniform")


GLOROT = glorot(1.0)  # Keras' default, as in FIT


# (q [*b n A d], k [*b k A d], v, mask [*b k] or None) -> [*b n A d]: `dot_product_attention`, or a
# kernel of the devices in its place.
Attend = Callable[[Array, Array, Array, Array | None], Array]

# Layers whose kernel's outputs, or inputs, belong to heads or hidden units: parallel/rules.py
# splits them by these lists, and `product` keeps them split.
BY_OUTPUT = ("q", "k", "v", "gate", "up", "input_conv")
BY_INPUT = ("o", "down", "output_conv")

# With more inputs on a device than so many for each number of a kernel, its gradient is summed over
# devices as a whole: transposing the inputs in a TPU's memory would take longer (docs/history).
SUM_WHOLE_ABOVE = 16


def constrain(x: Shaped[Array, "*n"], axes: tuple[Any, ...]) -> Shaped[Array, "*n"]:
    """Puts logical names on the axes of x, for the sharding in force where it is compiled."""
    return with_logical_constraint(x, axes)


def row_major(x: Shaped[Array, "*n"], axes: tuple[Any, ...]) -> Shaped[Array, "*n"]:
    """Constrains x as `constrain` does, with the last axis closest in memory on each device.

    Left alone, the compiler lays a loop's tokens out for the narrow head at its end, and all blocks
    work on tokens in the wrong layout. A program of a symbolic batch size, which any compiler must
    be able to read, has no layouts.
    """
    if not all(isinstance(size, int) for size in x.shape):
        return x
    lay_out = lambda part: with_layout_constraint(part, Layout(tuple(range(x.ndim))))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return lay_out(x)
    spec = logical_to_mesh_axes(axes)  # the compiler does not know how to split the request
    return jax.shard_map(lay_out, in_specs=spec, out_specs=spec)(constrain(x, axes))


def gather_kernel(
    kernel: Float[Array, "*n C D"], axes: tuple[str | None, ...], sum_whole: bool = False
) -> Float[Array, "*n C D"]:
    """Gathers a kernel for use: whole on each device, except along axes that have a name.

    Its gradient has no names, so each device sums only the part that it stores. With `sum_whole`
    the gradient is summed as whole as the kernel is, before the device takes its part.
    """
    return cast(Array, _gather_kernel(kernel, axes, sum_whole))


_gather_kernel = jax.custom_vjp(
    lambda kernel, axes, sum_whole: constrain(kernel, axes), nondiff_argnums=(1, 2)
)
_gather_kernel.defvjp(
    lambda kernel, axes, sum_whole: (constrain(kernel, axes), None),
    lambda axes, sum_whole, _, slope: (constrain(slope, axes) if sum_whole else slope,),
)


def product(name: str, multiply: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `multiply` (inputs [B, ..., C], kernel [..., C, D], ...) for a layer of that name.

    Examples stay where they are and the kernel comes to them. Left alone, the compiler may rather
    move activations to the parts of a kernel that is split over fsdp. And where a device has many
    times more inputs than the kernel has numbers, the gradient is summed as a whole: left alone,
    the compiler makes it part by part, and turns all inputs around in memory to do so.
    """
    input_axis = "hidden" if name in BY_INPUT else None
    output_axis = "hidden" if name in BY_OUTPUT else None

    def constrained(
        inputs: Float[Array, "B ... C"], kernel: Float[Array, "... C D"], *args: Any, **kwargs: Any
    ) -> Float[Array, "B ... D"]:
        anywhere = (PartitionSpec.UNCONSTRAINED,) * (inputs.ndim - 2)
        inputs = constrain(inputs, ("batch", *anywhere, input_axis))
        devices = num_devices()  # one sums nothing; there sizes may be symbols (export/)
        sum_whole = devices > 1 and inputs.size > SUM_WHOLE_ABOVE * kernel.size * devices
        kernel_axes = (None,) * (kernel.ndim - 2) + (input_axis, output_axis)
        kernel = gather_kernel(kernel, kernel_axes, sum_whole)
        return save_bits(multiply(inputs, kernel, *args, **kwargs), "product")

    return constrained


def num_devices() -> int:
    """Counts the devices of the mesh in force where this is traced; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def wide_bias(
    inputs: Float[Array, "*b C"],
    kernel: Float[Array, "... C D"],
    bias: Float[Array, " D"] | None,
    *,
    dtype: DTypeLike,
    **_: Any,
) -> tuple[Float[Array, "*b C"], Float[Array, "... C D"], Float[Array, " D"] | None]:
    """Casts inputs and kernel of a layer to `dtype`, and leaves the bias in its own, float32.

    So the gradient of the bias is summed in float32 too. In bfloat16 the sum over all inputs may be
    rounded at each of them, and takes twice as long on a TPU without bfloat16 units for it.
    """
    return inputs.astype(dtype), kernel.astype(dtype), bias


def fixed_bias(
    inputs: Float[Array, "*b C"],
    kernel: Float[Array, "... C D"],
    bias: Float[Array, " D"] | None,
    *,
    dtype: DTypeLike,
    **_: Any,
) -> tuple[Float[Array, "*b C"], Float[Array, "... C D"], Float[Array, " D"] | None]:
    """Casts as `wide_bias` does, and lets no gradient reach the bias, which stays as it is.

    A bias of keys adds one number to all scores of a query, and softmax is blind to it: its
    gradient is 0 but for rounding, which an optimizer would enlarge to full steps.
    """
    return wide_bias(inputs, kernel, jax.lax.stop_gradient(bias), dtype=dtype)


class Dense(nn.Dense):
    """A projection with `wide_bias`."""

    promote_dtype: Callable = wide_bias

    @nn.nowrap
    def __call__(self, inputs: Float[Array, "*b C"]) -> Float[Array, "*b D"]:
        """Returns the output in `dtype`."""
        return super().__call__(inputs).astype(self.dtype)


def dense(
    features: int,
    dtype: DTypeLike,
    name: str,
    use_bias: bool = True,
    kernel_init: Callable = GLOROT,
) -> Dense:
    """Returns a projection whose bias starts at zero."""
    return Dense(
        features=features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        dot_general=product(name, jax.lax.dot_general),
        promote_dtype=fixed_bias if name == "k" else wide_bias,
        name=name,
    )


def layer_norm(dtype: DTypeLike, name: str, **kwargs) -> nn.LayerNorm:
    """Returns a LayerNorm with scale and bias; statistics in float32, output in `dtype`."""
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, name=name, **kwargs)


class Modulation(NamedTuple):
    """What conditions make of a layer (adaLN, Peebles & Xie 2023), in float32."""

    shift: Float[Array, "B 1 D"]
    scale: Float[Array, "B 1 D"]
    gate: Float[Array, "B 1 D"]


def adaptive_norm(
    x: Float[Array, "B n D"],
    dtype: DTypeLike,
    name: str,
    shift: Float[Array, "B 1 D"],
    scale: Float[Array, "B 1 D"],
) -> Float[Array, "B n D"]:
    """out = LN(x) (1 + scale) + shift in float32; the norm has no scale and bias of its own."""
    plain = layer_norm(jnp.float32, name, use_scale=False, use_bias=False)
    return (plain(x) * (1 + scale) + shift).astype(dtype)


def input_norm(
    x: Float[Array, "*b n D"], dtype: DTypeLike, modulation: Modulation | None
) -> Float[Array, "*b n D"]:
    """Returns the norm of x that a layer reads, adaptive where there is a modulation."""
    if modulation is None:
        return layer_norm(dtype, "norm")(x)
    return adaptive_norm(x, dtype, "norm", modulation.shift, modulation.scale)


def residual(
    x: Float[Array, "*b n D"], out: Float[Array, "*b n D"], modulation: Modulation | None
) -> Float[Array, "*b n D"]:
    """Returns x + out, or x + gate out where there is a modulation."""
    return x + (out if modulation is None else modulation.gate * out)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """gelu = x Phi(x), exact, computed in float32; only x is saved for the backward pass.

    It takes erf, since the erfc of jax.nn.gelu has two branches, and between them a TPU's compiler
    writes a mask of the hidden units to memory.
    """
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 2**-0.5))).astype(x.dtype)


def materialize(hidden: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the hidden units as they are, written to memory once.

    Else a TPU's compiler computes them again for each tile of the product that reads them. Their
    gradient has no such barrier: what follows it is best fused with it.
    """
    return cast(Array, _materialize(hidden))


_materialize = jax.custom_vjp(jax.lax.optimization_barrier)
_materialize.defvjp(lambda x: (jax.lax.optimization_barrier(x), None), lambda _, slope: (slope,))


class FeedForward(nn.Module):
    """x + Dense(dropout(gelu(Dense(LN(x))))): 4x wide, exact GELU, dropout on the hidden units.

    output_scale: of the initial kernel of the last projection, in units of Glorot's.
    """

    dropout: float = 0.0
    ratio: int = 4
    output_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b n D"], train: bool = False, modulation: Modulation | None = None
    ) -> Float[Array, "*b n D"]:
        """Returns x plus the layer; dropout needs the rng stream "dropout" when `train`."""
        normed = input_norm(x, self.dtype, modulation)
        hidden = dense(self.ratio * x.shape[-1], self.dtype, "up")(normed)
        hidden = gelu(hidden)
        if train and self.dropout:
            hidden = dropout(hidden, self.dropout, self.make_rng("dropout"))
        init = glorot(self.output_scale)
        down = dense(x.shape[-1], self.dtype, "down", kernel_init=init)
        return residual(x, down(materialize(hidden)), modulation)


def dot_product_attention(
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    mask: Bool[Array, "*b k"] | None = None,
) -> Float[Array, "*b n A d"]:
    """out = softmax(q k^T / sqrt(d)) v, for any number of batch axes."""
    *batch, n, A, d = q.shape
    flat = lambda t: t.reshape((-1,) + t.shape[len(batch) :])
    allowed = None if mask is None else flat(mask)[:, None, None, :]
    return jax.nn.dot_product_attention(flat(q), flat(k), flat(v), mask=allowed).reshape(q.shape)


class Attention(nn.Module):
    """x + MHA(LN(x), LN(context)): cross-attention, or self-attention where context is None.

    The inner width is heads * head_channels; the output projection returns to the width of x.
    Tokens stand in a row, group by group; with `groups` above 1 each sees those of its own alone.
    output_scale: of the initial kernel of the output projection, in units of Glorot's.
    """

    heads: int
    head_channels: int
    attend: Attend
    dtype: DTypeLike = jnp.float32
    groups: int = 1
    output_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B K E"] | None = None,
        mask: Bool[Array, "B K"] | None = None,
        modulation: Modulation | None = None,
    ) -> Float[Array, "B N D"]:
        """Attends to the context where `mask` is True; each row needs one such token at least."""
        queries = input_norm(x, self.dtype, modulation)
        keys = queries if context is None else layer_norm(self.dtype, "context_norm")(context)
        width = self.heads * self.head_channels
        q, k, v = (
            self.split(dense(width, self.dtype, name)(tokens))
            for name, tokens in (("q", queries), ("k", keys), ("v", keys))
        )
        out = save_bits(self.attend(q, k, v, mask), "attention").reshape(*x.shape[:2], width)
        init = glorot(self.output_scale)
        out = dense(x.shape[-1], self.dtype, "o", kernel_init=init)(out)
        return residual(x, out, modulation)

    def split(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B *G n A d"]:
        """Splits tokens by groups, where there are some, and by heads."""
        by_heads = rearrange(tokens, "B N (A d) -> B N A d", A=self.heads)
        return by_heads if self.groups == 1 else group(by_heads, self.groups)


class AttentionBlock(nn.Module):
    """Attention, then a feed-forward: the pair drawn as "XAttn+FF" and "SAttn+FF" in Fig. 3b."""

    heads: int
    head_channels: int
    attend: Attend
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    groups: int = 1
    output_scale: float = 1.0  # of the initial kernels whose products x is increased by

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B K E"] | None = None,
        mask: Bool[Array, "B K"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B N D"]:
        """Returns x after both layers; shapes are those of `Attention`."""
        x = Attention(
            heads=self.heads,
            head_channels=self.head_channels,
            attend=self.attend,
            dtype=self.dtype,
            groups=self.groups,
            output_scale=self.output_scale,
            name="attention",
        )(x, context, mask)
        return FeedForward(
            dropout=self.dropout,
            output_scale=self.output_scale,
            dtype=self.dtype,
            name="feed_forward",
        )(x, train)


def sinusoid(x: Real[Array, " B"], width: int) -> Float[Array, "B D"]:
    """Returns sin and cos of x at `width` / 2 rates from 1 down to 1e-4, standardized."""
    rates = 10_000.0 ** (-jnp.arange(width // 2) / (width // 2))
    angles = x.astype(jnp.float32)[:, None] * rates[None, :]
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    centered = features - features.mean(-1, keepdims=True)
    return centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-12)


class ScalarEmbedding(nn.Module):
    """A number -> one token: sinusoid, Dense, SiLU, Dense, all `channels` wide (RIN)."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, " B"]) -> Float[Array, "B D"]:
        """Embeds x, already scaled to the range that the sinusoid resolves (about 1 to 1e4)."""
        hidden = nn.silu(dense(self.channels, self.dtype, "up")(sinusoid(x, self.channels)))
        return dense(self.channels, self.dtype, "down")(hidden)
