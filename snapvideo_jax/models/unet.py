"""The U-Net baseline: ADM with text and temporal attention interleaved (paper 4.3, Table 7).

ADM is Dhariwal & Nichol 2021: residual blocks scaled and shifted by the noise level, resampling
inside residual blocks, attention at some levels. What the paper leaves open (text by
cross-attention, frames by fixed positions) is set so that the parameters sum to its 85M and 284M.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import ConditioningTokens, Conditions
from snapvideo_jax.models.layers import Attend
from snapvideo_jax.models.remat import remat_module
from snapvideo_jax.models.unet_layers import (
    NORM_GROUPS,
    ZERO,
    Maps,
    Resample,
    SigmaEmbedding,
    UNetBlock,
    conv,
    double,
    group_norm,
    halve,
    identity,
)


class UNet(nn.Module):
    """F from c_in * x_sigma, the noise level and conditions; it carries no latents.

    Level i has multipliers[i] * channels, at 1 / 2^i of the height and width.
    """

    video: tuple[int, int, int]  # T, H, W with padding
    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int  # a level of the encoder; the decoder's have one more
    attention_levels: tuple[int, ...]  # downsampling factors, such as (2, 4, 8)
    head_channels: int
    conditioning_channels: int
    attend: Attend
    dropout: float = 0.0  # in the residual blocks
    remat: str = "none"  # what the backward pass computes again: remat.REMAT
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        self.check_channels()
        self.check_levels()

    def check_channels(self) -> None:
        """Raises ConfigError where groups of the norms or heads do not divide the channels."""
        if not self.multipliers or min(self.multipliers) < 1:
            raise ConfigError(
                f"model.unet.multipliers={self.multipliers} must be positive, one for each level"
            )
        if self.channels < 1 or self.channels % NORM_GROUPS:
            nearest = max(1, round(self.channels / NORM_GROUPS)) * NORM_GROUPS
            raise ConfigError(
                f"model.unet.channels={self.channels} must be a multiple of {NORM_GROUPS}: "
                f"try {nearest}"
            )
        with_attention = [w for i, w in enumerate(self.widths) if self.attends(i)]
        common = math.gcd(*with_attention, self.widths[-1])
        if self.head_channels < 1 or common % self.head_channels:
            raise ConfigError(
                f"model.unet.head_channels={self.head_channels} must divide {common}, which "
                f"divides the channels of all levels with attention: try "
                f"{math.gcd(common, self.head_channels)}"
            )

    def check_levels(self) -> None:
        """Raises ConfigError where the video cannot be halved or has no such attention level."""
        T, H, W = self.video
        factors = tuple(2**i for i in range(len(self.multipliers)))
        if H % factors[-1] or W % factors[-1]:
            larger = (T, *(math.ceil(size / factors[-1]) * factors[-1] for size in (H, W)))
            raise ConfigError(
                f"model.unet.multipliers={self.multipliers} halve the frames {len(factors) - 1} "
                f"times, which the padded video {self.video} does not allow; pad it to "
                f"{larger}"
            )
        if not set(self.attention_levels) <= set(factors):
            raise ConfigError(
                f"model.unet.attention_levels={self.attention_levels} must be among the levels' "
                f"downsampling factors {factors}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(m * self.channels for m in self.multipliers)

    @property
    def latent_shape(self) -> None:
        """None: there is no state for self-conditioning to carry."""
        return None

    def attends(self, level: int) -> bool:
        """Returns whether blocks of this level have attention."""
        return 2**level in self.attention_levels

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T H W C"],
        c_noise: Float[Array, " B"],
        conditions: Conditions,
        previous: Any,
        train: bool = False,
    ) -> tuple[Float[Array, "B T H W C"], Any]:
        """Returns F, which is 0 at initialization, and `previous` as it came.

        An upsampler reads `conditions.low_res` as further channels of x.
        """
        conditioning = ConditioningTokens(self.conditioning_channels, self.dtype, name="tokens")(
            c_noise, conditions
        )
        embedding = SigmaEmbedding(self.channels, self.dtype, name="sigma")(c_noise)
        Block = remat_module(UNetBlock, self.remat, static_argnums=4)

        def block(
            name: str, h: Maps, level: int, attention: bool, resample: Resample = identity
        ) -> Maps:
            layer = Block(
                num_frames=x.shape[1],
                channels=self.widths[level],
                attention=attention,
                head_channels=self.head_channels,
                attend=self.attend,
                resample=resample,
                dropout=self.dropout,
                dtype=self.dtype,
                name=name,
            )
            return layer(h, embedding, conditioning, train)

        last = len(self.widths) - 1
        frames = conditions.beside(x)
        h, skips = self.encode(rearrange(frames, "B T H W C -> (B T) H W C"), block)
        h = block("middle0", h, last, attention=True)
        h = block("middle1", h, last, attention=False)
        h = nn.silu(group_norm(self.dtype, "head_norm")(self.decode(h, skips, block)))
        out = conv(x.shape[-1], 3, self.dtype, "head", ZERO)(h)
        return out.reshape(x.shape), previous

    def encode(self, x: Maps, block: Callable) -> tuple[Maps, list[Maps]]:
        """Goes down the levels; returns the smallest map, and all maps for the decoder."""
        x = conv(self.widths[0], 3, self.dtype, "stem")(x)
        skips = [x]
        for level in range(len(self.widths)):
            if level:
                name = f"encoder{level - 1}_downsample"
                x = block(name, x, level - 1, attention=False, resample=halve)
                skips.append(x)
            for i in range(self.residual_blocks):
                x = block(f"encoder{level}_{i}", x, level, self.attends(level))
                skips.append(x)
        return x, skips

    def decode(self, x: Maps, skips: list[Maps], block: Callable) -> Maps:
        """Goes up the levels; each block reads the encoder's map of its size, last one first."""
        for level in reversed(range(len(self.widths))):
            for i in range(self.residual_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(f"decoder{level}_{i}", x, level, self.attends(level))
            if level:
                x = block(f"decoder{level}_upsample", x, level, attention=False, resample=double)
        return x
