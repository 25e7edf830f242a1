"""FIT: the far-reaching interleaved transformer of Snap Video (paper 3.4, Table 8).

Patch tokens are many and stay in their groups; latent tokens are few and do the thinking. Shapes
inside: patches [B, N, C] and latents [B, M, D], each in a row, group by group (N = G n, M = G m).
Only attention within groups takes the rows apart: products over rows have better layouts.

The activations that a mesh may split carry logical names (flax's): batch, groups and tokens. Which
mesh axes they lie on stands in parallel/rules.py; without a mesh the names do nothing.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import ConditioningTokens, Conditions
from snapvideo_jax.models.layers import (
    Attend,
    AttentionBlock,
    FeedForward,
    constrain,
    dense,
    gather_kernel,
    layer_norm,
    row_major,
)
from snapvideo_jax.models.patches import Grouping, group, patchify, ungroup, unpatchify
from snapvideo_jax.models.remat import stack

TOKENS = ("batch", "tokens", None)
GROUPED = ("batch", "groups", None, None)


class FITBlock(nn.Module):
    """One block in the paper's order, in the form that a scan needs.

    heads and head channels are (patch attention, latent attention). Attention between two widths
    takes the fewer heads of the two and the narrower width (FIT's rule). write_scale: of the
    initial output kernels of write, in units of Glorot's.
    """

    groups: int
    heads: tuple[int, int]
    head_channels: tuple[int, int]
    global_layers: int
    dropout: float
    write_scale: float
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(
        self,
        tokens: tuple[Float[Array, "B N C"], Float[Array, "B M D"]],
        conditioning: tuple[Float[Array, "B K E"], Bool[Array, "B K"]],
        train: bool,
    ):
        """Returns ((patches, latents), None); `conditioning` is (tokens, mask)."""
        patches, latents = (constrain(t, TOKENS) for t in tokens)
        layer = functools.partial(AttentionBlock, attend=self.attend, dtype=self.dtype)
        heads = min(self.heads)
        width = min(patches.shape[-1], latents.shape[-1])
        cross = functools.partial(layer, heads=heads, head_channels=width // heads)
        latents = cross(name="attend_conditioning")(latents, *conditioning)
        latents = cross(groups=self.groups, name="read")(latents, patches)
        latents = constrain(latents, TOKENS)
        for i in range(self.global_layers):
            latents = layer(
                heads=self.heads[1],
                head_channels=self.head_channels[1],
                dropout=self.dropout,
                name=f"global{i}",
            )(latents, train=train)
        write = cross(groups=self.groups, output_scale=self.write_scale, name="write")
        patches = write(patches, constrain(latents, TOKENS))
        return (row_major(patches, TOKENS), latents), None


class FIT(nn.Module):
    """F and the last latents from c_in * x_sigma, the noise level, conditions, previous latents."""

    video: tuple[int, int, int]  # T, H, W with padding
    grouping: Grouping
    patch_channels: int
    latents: int  # M, all groups together
    latent_channels: int
    blocks: int
    global_layers: int
    patch_head_channels: int
    latent_head_channels: int
    conditioning_channels: int
    attend: Attend
    dropout: float = 0.0
    table_std: float = 0.02  # of the initial position and latent tables
    write_scale: float = 1.0  # of the initial output kernels of write, in units of Glorot's
    remat: str = "none"  # what the backward pass computes again: remat.REMAT
    unroll: int = 1  # blocks in one turn of the loop over them, in training
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        num_groups = self.grouping.num_groups(self.video)
        for field, size, by in (
            ("latents", self.latents, num_groups),
            ("patch_channels", self.patch_channels, self.patch_head_channels),
            ("latent_channels", self.latent_channels, self.latent_head_channels),
        ):
            if size % by:
                nearest = max(1, round(size / by)) * by
                raise ConfigError(
                    f"model.fit.{field}={size} must be a multiple of {by}: try {nearest}"
                )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(G, m, D) of one example's latents, the state that self-conditioning carries."""
        num_groups = self.grouping.num_groups(self.video)
        return num_groups, self.latents // num_groups, self.latent_channels

    def looped(self) -> "FIT":
        """Returns this network with its blocks in a loop, for passes that take no gradient.

        They keep nothing for a backward pass, so they are as fast, and compile sooner.
        """
        return self.clone(unroll=1)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T H W C"],
        c_noise: Float[Array, " B"],
        conditions: Conditions,
        previous: Float[Array, "B G m D"],
        train: bool = False,
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, "B G m D"]]:
        """Returns F and the latents; `previous` is zero in the first call (3.4, RIN).

        An upsampler reads `conditions.low_res` as further channels of x.
        """
        conditioning = ConditioningTokens(self.conditioning_channels, self.dtype, name="tokens")(
            c_noise, conditions
        )
        tokens = ungroup(self.stem(conditions.beside(x))), ungroup(self.initial_latents(previous))
        Blocks = stack(FITBlock, self.remat, blocks=self.blocks, unroll=self.unroll, train=train)
        (patches, latents), _ = Blocks(
            groups=self.latent_shape[0],
            heads=(
                self.patch_channels // self.patch_head_channels,
                self.latent_channels // self.latent_head_channels,
            ),
            head_channels=(self.patch_head_channels, self.latent_head_channels),
            global_layers=self.global_layers,
            dropout=self.dropout,
            write_scale=self.write_scale,
            dtype=self.dtype,
            attend=self.attend,
            name="blocks",
        )(tokens, conditioning, train)
        patch_size = self.grouping.patch**2 * x.shape[-1]
        F = dense(patch_size, self.dtype, "head")(layer_norm(self.dtype, "head_norm")(patches))
        F, latents = (constrain(group(t, self.latent_shape[0]), GROUPED) for t in (F, latents))
        return unpatchify(F, self.grouping, self.video), latents

    def stem(self, x: Float[Array, "B T H W P"]) -> Float[Array, "B G n C"]:
        """patches = LN(Dense(patches)) + table, a learned position table that all groups share."""
        init = nn.initializers.truncated_normal(self.table_std)
        table = self.param("positions", init, (self.grouping.tokens, self.patch_channels))
        patches = dense(self.patch_channels, self.dtype, "stem")(patchify(x, self.grouping))
        patches = layer_norm(jnp.float32, "stem_norm")(patches)
        return constrain(patches + gather_kernel(table, (None, None))[None, None], GROUPED)

    def initial_latents(self, previous: Float[Array, "B G m D"]) -> Float[Array, "B G m D"]:
        """latents = table + LN(h + FF(LN(h))), h the previous ones; LN's scale starts at 0 (RIN).

        So at initialization the previous latents change nothing; h = 0 is "none" throughout.
        """
        init = nn.initializers.truncated_normal(self.table_std)
        table = self.param("latent_table", init, self.latent_shape)
        h = FeedForward(dtype=self.dtype, name="self_conditioning")(previous)
        zero = nn.initializers.zeros
        h = layer_norm(jnp.float32, "self_conditioning_norm", scale_init=zero)(h)
        return constrain(gather_kernel(table, ("groups", None, None))[None] + h, GROUPED)
