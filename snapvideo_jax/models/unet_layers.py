"""The layers of the U-Net: ADM's residual block, attention over space, text and time.

Frames are folded into the batch: activations are [N, H, W, C] with N = B T, channels last.
Parameters are float32; convolutions, projections and the residual stream run in `dtype`, group
norms take their statistics and softmax its exponentials in float32. ADM is Dhariwal & Nichol 2021.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from snapvideo_jax.models.conditioning import SCALE
from snapvideo_jax.models.dropout import dropout
from snapvideo_jax.models.layers import Attend, dense, product, sinusoid, wide_bias
from snapvideo_jax.models.remat import save_bits

NORM_GROUPS = 32
NORM_EPSILON = 1e-5  # ADM's
FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(+-1 / sqrt(fan_in))
ZERO = nn.initializers.zeros

Frames = Float[Array, "N H W C"]
Maps = Float[Array, "N _ _ _"]  # frames whose size and channels change from level to level
Resample = Callable[[Maps], Maps]


def group_norm(dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """Returns a GroupNorm of 32 groups over a frame; statistics in float32, output in `dtype`."""
    return nn.GroupNorm(num_groups=NORM_GROUPS, epsilon=NORM_EPSILON, dtype=dtype, name=name)


class Conv(nn.Conv):
    """A convolution with `wide_bias`."""

    promote_dtype: Callable = wide_bias

    @nn.nowrap
    def __call__(self, inputs: Float[Array, "N H W C"]) -> Float[Array, "N H W D"]:
        """Returns the output in `dtype`."""
        return super().__call__(inputs).astype(self.dtype)


def conv(
    features: int, size: int, dtype: DTypeLike, name: str, kernel_init: Callable = FAN_IN
) -> Conv:
    """Returns a `size` x `size` convolution that keeps H and W; its bias starts at zero."""
    return Conv(
        features=features,
        kernel_size=(size, size),
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=product(name, jax.lax.conv_general_dilated),
        name=name,
    )


def identity(x: Frames) -> Frames:
    """Returns x, for blocks that do not resample."""
    return x


def halve(x: Float[Array, "N H W C"]) -> Float[Array, "N H//2 W//2 C"]:
    """Averages each 2 x 2 pixels."""
    return reduce(x, "N (H 2) (W 2) C -> N H W C", "mean")


def double(x: Float[Array, "N H W C"]) -> Float[Array, "N 2*H 2*W C"]:
    """Repeats each pixel as 2 x 2 (nearest neighbor), the inverse of `halve` on its output."""
    return repeat(x, "N H W C -> N (H 2) (W 2) C")


class SigmaEmbedding(nn.Module):
    """The noise level for the residual blocks: sinusoid, Dense, SiLU, Dense (ADM)."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, c_noise: Float[Array, " B"]) -> Float[Array, "B e"]:
        """Returns one embedding a video, 4 x `channels` wide."""
        features = sinusoid(SCALE["c_noise"] * c_noise, self.channels)
        hidden = nn.silu(dense(4 * self.channels, self.dtype, "up")(features))
        return dense(4 * self.channels, self.dtype, "down")(hidden)


class ResidualBlock(nn.Module):
    """skip(x) + conv(dropout(silu(GN(conv(silu(GN(x)))) (1 + scale) + shift))), ADM's.

    scale and shift come from the noise level; `resample` acts on x and on its branch before the
    first convolution. The second convolution starts at 0, so the block starts as its skip.
    """

    channels: int
    resample: Resample = identity
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, embedding: Float[Array, "B e"], train: bool = False) -> Maps:
        """Returns the block's output; dropout needs the rng stream "dropout" if `train`."""
        h = nn.silu(group_norm(self.dtype, "input_norm")(x))
        x, h = self.resample(x), self.resample(h)
        h = conv(self.channels, 3, self.dtype, "input_conv")(h)
        h = nn.silu(self.modulate(group_norm(self.dtype, "output_norm")(h), embedding))
        if train and self.dropout:
            h = dropout(h, self.dropout, self.make_rng("dropout"))
        if x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, "skip")(x)
        return x + conv(self.channels, 3, self.dtype, "output_conv", ZERO)(h)

    def modulate(self, h: Frames, embedding: Float[Array, "B e"]) -> Frames:
        """h = h (1 + scale) + shift, the same for all frames of a video."""
        scale_shift = dense(2 * self.channels, self.dtype, "scale_shift")(nn.silu(embedding))
        num_frames = h.shape[0] // embedding.shape[0]
        scale_shift = repeat(scale_shift, "B C -> (B T) 1 1 C", T=num_frames)
        scale, shift = jnp.split(scale_shift, 2, axis=-1)
        return h * (1 + scale) + shift


class MultiHeadAttention(nn.Module):
    """MHA(x, context) without norm and residual; its output projection starts at 0 (ADM)."""

    head_channels: int
    attend: Attend
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n C"],
        context: Float[Array, "b k E"],
        mask: Bool[Array, "b k"] | None = None,
    ) -> Float[Array, "b n C"]:
        """Attends to the context where `mask` is True; each row needs one such token at least."""
        channels = x.shape[-1]
        split = lambda t: rearrange(t, "b n (A d) -> b n A d", d=self.head_channels)
        q = split(dense(channels, self.dtype, "q")(x))
        k = split(dense(channels, self.dtype, "k")(context))
        v = split(dense(channels, self.dtype, "v")(context))
        out = save_bits(self.attend(q, k, v, mask), "attention")
        out = rearrange(out, "b n A d -> b n (A d)")
        return dense(channels, self.dtype, "o", kernel_init=ZERO)(out)


class SpatialAttention(nn.Module):
    """x + MHA over the pixels of a frame (ADM)."""

    head_channels: int
    attend: Attend
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames) -> Frames:
        """Returns x plus the attention of each pixel to those of its frame."""
        h = rearrange(group_norm(self.dtype, "norm")(x), "N H W C -> N (H W) C")
        attention = MultiHeadAttention(
            head_channels=self.head_channels,
            attend=self.attend,
            dtype=self.dtype,
            name="attention",
        )
        out = attention(h, h)
        return x + out.reshape(x.shape)


class TextAttention(nn.Module):
    """x + MHA from the pixels of a video to its conditioning tokens.

    The frames of a video query as one row, so keys and values are computed once a video.
    """

    head_channels: int
    attend: Attend
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Frames, tokens: Float[Array, "B K E"], mask: Bool[Array, "B K"]
    ) -> Frames:
        """Returns x plus its attention to the tokens where `mask` is True."""
        h = group_norm(self.dtype, "norm")(x)
        h = rearrange(h, "(B T) H W C -> B (T H W) C", B=tokens.shape[0])
        attention = MultiHeadAttention(
            head_channels=self.head_channels,
            attend=self.attend,
            dtype=self.dtype,
            name="attention",
        )
        return x + attention(h, tokens, mask).reshape(x.shape)


class TemporalAttention(nn.Module):
    """x + MHA over the frames at one place; the identity at initialization.

    Attention alone cannot tell the order of frames. The paper names no remedy, and a learned table
    would leave its parameter counts, so the normed input gets the fixed sinusoid of its frame's
    index; seconds between frames are among the conditioning tokens.
    """

    num_frames: int
    head_channels: int
    attend: Attend
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Frames) -> Frames:
        """Returns x plus the attention of each place to itself in all frames."""
        T, (_, H, W, C) = self.num_frames, x.shape
        h = rearrange(group_norm(self.dtype, "norm")(x), "(B T) H W C -> (B H W) T C", T=T)
        h = h + sinusoid(jnp.arange(T), C).astype(self.dtype)[None]
        attention = MultiHeadAttention(
            head_channels=self.head_channels,
            attend=self.attend,
            dtype=self.dtype,
            name="attention",
        )
        out = attention(h, h)
        return x + rearrange(out, "(B H W) T C -> (B T) H W C", H=H, W=W)


class UNetBlock(nn.Module):
    """A residual block and, where `attention`, attention over space, text and time after it."""

    num_frames: int
    channels: int
    attention: bool
    head_channels: int
    attend: Attend
    resample: Resample = identity
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Maps,
        embedding: Float[Array, "B e"],
        conditioning: tuple[Float[Array, "B K E"], Bool[Array, "B K"]],
        train: bool,
    ) -> Maps:
        """Returns frames of `channels`; `conditioning` is (tokens, mask)."""
        x = ResidualBlock(
            channels=self.channels,
            resample=self.resample,
            dropout=self.dropout,
            dtype=self.dtype,
            name="residual",
        )(x, embedding, train)
        if not self.attention:
            return x
        common: dict[str, Any] = {
            "head_channels": self.head_channels,
            "attend": self.attend,
            "dtype": self.dtype,
        }
        x = SpatialAttention(**common, name="space")(x)
        x = TextAttention(**common, name="text")(x, *conditioning)
        return TemporalAttention(num_frames=self.num_frames, **common, name="time")(x)
