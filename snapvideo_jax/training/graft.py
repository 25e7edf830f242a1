"""The upsampler's start: the first stage's weights in the upsampler's shapes (paper 3.5).

Every leaf of the trunk has the same shape in both and is copied. Three leaves know the picture's
size and are carried over; the token of the augmentation level is new. Right after the graft the
upsampler does not see the low resolution yet: but for that one more token among those it attends
to, it is the first stage's function of x, group by group.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.trees import leaves_by_name, path_name


def graft(stage1: Any, fresh: Any, stage1_network: FIT, network: FIT) -> Any:
    """Makes the parameters that an upsampler starts from.

    Args:
        stage1: trained parameters, {"network": ..., "text_encoder": ...}.
        fresh: the upsampler's, as initialized; gives what the first stage does not have.
        stage1_network: the network that `stage1` belongs to.
        network: the upsampler's.

    Raises:
        ConfigError: a leaf of the first stage fits no leaf of the upsampler.
    """
    left = leaves_by_name(stage1)

    def carry(path, leaf):
        name = path_name(path)
        old = left.pop(name, None)
        if old is None:
            return leaf
        if name == "network/stem/kernel":
            old = widen_stem(old, leaf.size)
        elif name == "network/latent_table":
            old = split_latents(old, _grid(stage1_network), _grid(network))
        elif name == "network/positions":
            old = resize_positions(old, stage1_network.grouping.group, network.grouping.group)
        if old.shape != leaf.shape:
            raise ConfigError(
                f"training.start_from: {name} is {old.shape} there and {leaf.shape} here; the two "
                "stages must agree in channels, blocks, layers and patch"
            )
        return old

    grafted = jax.tree_util.tree_map_with_path(carry, fresh)
    if left:
        raise ConfigError(f"training.start_from: nothing here takes its {sorted(left)[0]}")
    return grafted


def widen_stem(kernel: Float[Array, "*k P C"], size: int) -> Float[Array, "*k Q C"]:
    """Adds rows of 0 for the low resolution's channels, after x's 3 of each pixel that it reads.

    They share the leaf and its trust ratio with x's rows, so they start to move at once.
    size: of the upsampler's kernel, in numbers.
    """
    by_pixel = kernel.reshape(-1, 3, kernel.shape[-1])
    new = max(0, size // by_pixel[:, 0].size - 3)
    wide = jnp.pad(by_pixel, ((0, 0), (0, new), (0, 0)))
    return wide.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])


def split_latents(
    table: Float[Array, "G m D"], before: tuple[int, int, int], after: tuple[int, int, int]
) -> Float[Array, "J k D"]:
    """Shares a group's latents out to the groups that now cover its part of the picture.

    before, after: groups along (T, rows, columns). ConfigError unless `after` is a multiple of
    `before` whose groups share the latents evenly.
    """
    factors = [a / b for a, b in zip(after, before, strict=True)]
    parts = factors[0] * factors[1] * factors[2]
    if any(factor % 1 for factor in factors) or table.shape[1] % parts:
        raise ConfigError(
            f"training.start_from: {before} groups of {table.shape[1]} latents cannot be shared "
            f"out to {after} groups"
        )
    t, r, c = before
    s, i, j = map(int, factors)
    return rearrange(
        table, "(t r c) (s i j m) D -> (t s r i c j) m D", t=t, r=r, c=c, s=s, i=i, j=j
    )


def resize_positions(
    table: Float[Array, "n C"], before: tuple[int, int, int], after: tuple[int, int, int]
) -> Float[Array, "N C"]:
    """Resizes the position table of a group of `before` patches, bilinearly, to one of `after`."""
    C = table.shape[-1]
    return jax.image.resize(table.reshape(*before, C), (*after, C), "bilinear").reshape(-1, C)


def _grid(network: FIT) -> tuple[int, int, int]:
    return network.grouping.groups(network.video)
