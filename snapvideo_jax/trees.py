"""Trees of arrays: the names of their leaves, and the bytes that a device holds of them."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def names(path: tuple) -> tuple[str, ...]:
    """Returns the names along a path, such as ("network", "blocks", "read", ..., "kernel")."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def path_name(path: tuple) -> str:
    """Returns a path as text: "params/network/blocks/read/attention/q/kernel"."""
    return "/".join(names(path))


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """Returns path name -> leaf, in the order of the tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def device_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of abstract arrays with shardings."""
    return sum(
        jnp.dtype(leaf.dtype).itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )
