"""Every reshape of tokens, as inverse pairs: pixels <-> patch tokens, and tokens <-> groups.

A patch spans one frame (1 x p x p pixels); a group of patches spans gt frames x gh x gw patches
(paper 3.4, Table 8). The element at pixel (t, y, x, c) lands in
group (t // gt, y // p // gh, x // p // gw), row-major, at the position of its patch inside the
group, row-major, in channel ((y % p) * p + x % p) * C + c.
"""

import math
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Array, Float

from snapvideo_jax.errors import ConfigError


class Grouping(NamedTuple):
    """The cut of a video: a patch's side in pixels, a group's (T, rows, columns) in patches."""

    patch: int
    group: tuple[int, int, int]

    def groups(self, video: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the groups along (T, rows, columns) of a (T, H, W) video; ConfigError: no fit."""
        unit = (self.group[0], self.group[1] * self.patch, self.group[2] * self.patch)
        if any(size % step for size, step in zip(video, unit, strict=True)):
            nearest = tuple(max(1, round(s / u)) * u for s, u in zip(video, unit, strict=True))
            raise ConfigError(
                f"model.fit.patch={self.patch} and model.fit.group={self.group} cover {unit} "
                f"frames x pixels x pixels, which does not divide the padded video {video}; the "
                f"nearest size that fits is {nearest}"
            )
        return video[0] // unit[0], video[1] // unit[1], video[2] // unit[2]

    def num_groups(self, video: tuple[int, int, int]) -> int:
        """Returns G for a video of (T, H, W)."""
        return math.prod(self.groups(video))

    @property
    def tokens(self) -> int:
        """n: patch tokens in a group."""
        return math.prod(self.group)


def patchify(x: Float[Array, "B T H W C"], grouping: Grouping) -> Float[Array, "B G n P"]:
    """Cuts a video into groups of patch tokens of P = p * p * C numbers."""
    gt, gh, gw = grouping.group
    return rearrange(
        x,
        "B (T gt) (H gh p) (W gw q) C -> B (T H W) (gt gh gw) (p q C)",
        gt=gt,
        gh=gh,
        gw=gw,
        p=grouping.patch,
        q=grouping.patch,
    )


def unpatchify(
    tokens: Float[Array, "B G n P"], grouping: Grouping, video: tuple[int, int, int]
) -> Float[Array, "B T H W C"]:
    """Inverts `patchify` for a video of (T, H, W)."""
    (gt, gh, gw), (T, H, W) = grouping.group, grouping.groups(video)
    return rearrange(
        tokens,
        "B (T H W) (gt gh gw) (p q C) -> B (T gt) (H gh p) (W gw q) C",
        T=T,
        H=H,
        W=W,
        gt=gt,
        gh=gh,
        gw=gw,
        p=grouping.patch,
        q=grouping.patch,
    )


def group(tokens: Float[Array, "B N *D"], num_groups: int) -> Float[Array, "B G n *D"]:
    """Splits a row of all groups' tokens by group."""
    return rearrange(tokens, "B (G n) ... -> B G n ...", G=num_groups)


def ungroup(tokens: Float[Array, "B G n *D"]) -> Float[Array, "B N *D"]:
    """Inverts `group`."""
    return rearrange(tokens, "B G n ... -> B (G n) ...")
