"""A number for each leaf of a state that any flipped bit changes, and which leaves are finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Shaped, UInt32

from snapvideo_jax.trees import leaves_by_name


@jax.jit  # so that leaves of one shape are traced once
def digest(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Computes a uint32 that any single flipped bit changes and that is the same on every mesh.

    It is the sum, modulo 2^32, of the bits of each element times an odd number of its position:
    integer arithmetic, so the order of summation does not matter.
    """
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        leaf = leaf.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    position = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, leaf.shape, axis
        )
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


@jax.jit
def _digest_tree(leaves: list[Shaped[Array, "..."]]) -> UInt32[Array, " leaves"]:
    """Returns the digest of each leaf."""
    return jnp.stack([digest(leaf) for leaf in leaves])


def of(tree: Any) -> dict[str, int]:
    """Returns leaf name -> digest."""
    leaves = leaves_by_name(tree)
    values = _on_host(_digest_tree(list(leaves.values())))
    return {name: int(value) for name, value in zip(leaves, values, strict=True)}


@jax.jit
def _finite_leaves(leaves: list[Shaped[Array, "..."]]) -> Bool[Array, " leaves"]:
    """Returns of each leaf whether all its numbers are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def not_finite(tree: Any) -> list[str]:
    """Returns the names of the leaves that hold not-a-number or an infinity."""
    leaves = leaves_by_name(tree)
    finite = _on_host(_finite_leaves(list(leaves.values())))
    return [name for name, whole in zip(leaves, finite, strict=True) if not whole]


def _on_host(values: Shaped[Array, " leaves"]) -> Shaped[np.ndarray, " leaves"]:
    """Fetches all of an array that may be spread over the devices of many processes."""
    if values.is_fully_addressable:
        return np.asarray(values)
    return multihost_utils.process_allgather(values, tiled=True)
