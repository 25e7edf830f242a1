"""DiT, the diffusion transformer of Peebles & Xie 2023 on patches of a video: a rival of FIT.

Each patch token sees all others in every block: those of the whole video at once (joint), or those
of its frame and then those of its place (factorised; STDiT, Zheng et al. 2024). Text comes in by
cross-attention, and one modulation serves all blocks, each of which adds a table of its own to it
(adaLN-single of PixArt-alpha, Chen et al. 2024).

N = T S tokens stand in a row, frame by frame, S places in each. A mesh may split the row; its
logical names are those of fit.py.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import ConditioningTokens, Conditions
from snapvideo_jax.models.layers import (
    Attend,
    Attention,
    FeedForward,
    Modulation,
    adaptive_norm,
    constrain,
    dense,
    sinusoid,
)
from snapvideo_jax.models.patches import Grouping, patchify, ungroup, unpatchify
from snapvideo_jax.models.remat import stack

ROW = ("batch", "tokens", None)
ZERO = nn.initializers.zeros


class DiTBlock(nn.Module):
    """Self-attention, attention to the conditions, feed-forward: the identity at initialization.

    frames: T where self-attention is over space, then time; None where it is joint.
    """

    frames: int | None
    head_channels: int
    dropout: float
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N C"],
        conditioning: tuple[Float[Array, "B L 3 C"], Float[Array, "B K E"], Bool[Array, "B K"]],
        train: bool,
    ):
        """Returns (x, None), the form that a scan needs.

        conditioning: shift, scale and gate of the L layers between which the residual stream is
        modulated, before this block's table is added; tokens; mask of the tokens.
        """
        shared, tokens, mask = conditioning
        table = self.param("modulation_table", ZERO, shared.shape[1:])
        layers = rearrange(shared + table[None], "B L V C -> L V B 1 C")
        *attentions, feed_forward = [Modulation(*layer) for layer in layers]
        common: dict[str, Any] = {
            "heads": x.shape[-1] // self.head_channels,
            "head_channels": self.head_channels,
            "attend": self.attend,
            "dtype": self.dtype,
        }
        x = constrain(x, ROW)
        if self.frames is None:
            x = Attention(**common, name="joint")(x, modulation=attentions[0])
        else:
            T, S = self.frames, x.shape[1] // self.frames
            x = Attention(**common, groups=T, name="space")(x, modulation=attentions[0])
            x = constrain(rearrange(x, "B (T S) C -> B (S T) C", T=T), ROW)
            x = Attention(**common, groups=S, name="time")(x, modulation=attentions[1])
            x = constrain(rearrange(x, "B (S T) C -> B (T S) C", T=T), ROW)
        x = Attention(**common, output_scale=0.0, name="text")(x, tokens, mask)
        layer = FeedForward(dropout=self.dropout, dtype=self.dtype, name="feed_forward")
        return constrain(layer(x, train, modulation=feed_forward), ROW), None


class DiT(nn.Module):
    """F from c_in * x_sigma, the noise level and conditions; it carries no latents."""

    video: tuple[int, int, int]  # T, H, W with padding
    patch: int  # pixels a side; a patch spans one frame
    channels: int
    blocks: int
    head_channels: int
    factorised: bool  # self-attention over space, then time, in the place of both at once
    conditioning_channels: int
    attend: Attend
    dropout: float = 0.0  # of the feed-forwards' hidden units
    remat: str = "none"  # what the backward pass computes again: remat.REMAT
    unroll: int = 1  # blocks in one turn of the loop over them, in training
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        _, H, W = self.video
        if H % self.patch or W % self.patch:
            nearest = tuple(max(1, round(size / self.patch)) * self.patch for size in (H, W))
            raise ConfigError(
                f"model.dit.patch={self.patch} does not divide the {H} x {W} pixels of a padded "
                f"frame; the nearest size that fits is {nearest[0]} x {nearest[1]}"
            )
        if self.channels % self.head_channels or self.channels % 2:
            unit = self.head_channels * (1 + self.head_channels % 2)
            nearest_channels = max(1, round(self.channels / unit)) * unit
            raise ConfigError(
                f"model.dit.channels={self.channels} must be a multiple of {unit}: "
                f"try {nearest_channels}"
            )

    @property
    def latent_shape(self) -> None:
        """None: there is no state for self-conditioning to carry."""
        return None

    @property
    def frame(self) -> Grouping:
        """The cut of a video into patches, frame by frame."""
        _, H, W = self.video
        return Grouping(self.patch, (1, H // self.patch, W // self.patch))

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
        tokens, mask = ConditioningTokens(self.conditioning_channels, self.dtype, name="tokens")(
            c_noise, conditions
        )
        layers = 3 if self.factorised else 2  # those of a block that are modulated
        scalars = tokens[:, : -conditions.text.shape[1]].sum(axis=1)
        modulation = self.modulation(scalars, vectors=3 * layers + 2)
        shared = rearrange(modulation[:, :-2], "B (L V) C -> B L V C", V=3)
        patches = ungroup(patchify(conditions.beside(x), self.frame))
        stem = dense(self.channels, self.dtype, "stem")(patches)
        row = constrain(stem + positions(self.video[0], self.frame, self.channels), ROW)
        Blocks = stack(DiTBlock, self.remat, blocks=self.blocks, unroll=self.unroll, train=train)
        row, _ = Blocks(
            frames=self.video[0] if self.factorised else None,
            head_channels=self.head_channels,
            dropout=self.dropout,
            dtype=self.dtype,
            attend=self.attend,
            name="blocks",
        )(row, (shared, tokens, mask), train)
        shift, scale = modulation[:, -2, None], modulation[:, -1, None]
        normed = adaptive_norm(row, self.dtype, "head_norm", shift, scale)
        patch_size = self.patch**2 * x.shape[-1]
        F = dense(patch_size, self.dtype, "head", kernel_init=ZERO)(normed)
        by_frame = rearrange(constrain(F, ROW), "B (T S) P -> B T S P", T=self.video[0])
        return unpatchify(by_frame, self.frame, self.video), previous

    def modulation(self, scalars: Float[Array, "B E"], vectors: int) -> Float[Array, "B V C"]:
        """modulation = Dense(SiLU(sum of the scalars' tokens)): 0 at the start (adaLN-Zero)."""
        width = vectors * self.channels
        project = dense(width, self.dtype, "modulation", kernel_init=ZERO)
        out = project(nn.silu(scalars)).astype(jnp.float32)
        return rearrange(out, "B (V C) -> B V C", V=vectors)


def positions(frames: int, frame: Grouping, channels: int) -> Float[Array, "1 N C"]:
    """Returns fixed sinusoids of the frame, row and column of each token, side by side."""
    _, rows, columns = frame.group
    side = channels // 6 * 2
    axes = (
        ("T", frames, channels - 2 * side),
        ("H", rows, side),
        ("W", columns, side),
    )
    grid = [
        repeat(
            sinusoid(jnp.arange(size), width), f"{axis} C -> T H W C", T=frames, H=rows, W=columns
        )
        for axis, size, width in axes
    ]
    return rearrange(jnp.concatenate(grid, axis=-1), "T H W C -> 1 (T H W) C")
