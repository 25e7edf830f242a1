"""What the forward pass saves for the backward pass, what that computes again, and the loop.

`stack` is the loop over blocks that all transformers here have.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jaxtyping import Array, Float

# (primitive, its inputs, its parameters) -> whether jax.checkpoint saves its outputs.
Policy = Callable[..., Any]


def with_statistics(policy: Policy) -> Policy:
    """Extends `policy` to save sums of 64 numbers or more too, such as the statistics of norms.

    They are small, and to compute them again is another pass over all of their terms.
    """

    def saves(primitive: Primitive, *inputs: Any, **params: Any) -> Any:
        is_sum = primitive.name == "reduce_sum"
        if is_sum and math.prod(inputs[0].shape[axis] for axis in params["axes"]) >= 64:
            return True
        return policy(primitive, *inputs, **params)

    return saves


# What the backward pass computes again instead of reading, by name: nothing; everything but the
# products with kernels, attention, the words of dropout and statistics; the same, but products and
# attention wait in the memory of the host meanwhile; or all of a block but its statistics.
POLICIES = jax.checkpoint_policies
REMAT = {
    "none": None,
    "dots": with_statistics(POLICIES.save_only_these_names("product", "attention", "dropout")),
    "offload": with_statistics(
        POLICIES.save_and_offload_only_these_names(
            names_which_can_be_saved=["dropout"],
            names_which_can_be_offloaded=["product", "attention"],
            offload_src="device",
            offload_dst="pinned_host",
        )
    ),
    "block": with_statistics(POLICIES.nothing_saveable),
}


def remat_module(
    block: type[nn.Module], policy: str, static_argnums: int, looped: bool = False
) -> type[nn.Module]:
    """Returns `block` under a policy of REMAT; `static_argnums` is its `train`, self being 0.

    In a loop over blocks (`looped`) the compiler cannot undo it. Elsewhere it is prevented from
    that, unless little is computed again: then it may save what it judges worth the memory.
    """
    if REMAT[policy] is None:
        return block
    return nn.remat(
        block,
        policy=REMAT[policy],
        static_argnums=(static_argnums,),
        prevent_cse=not looped and policy != "dots",
    )


def stack(
    block: type[nn.Module], policy: str, *, blocks: int, unroll: int, train: bool
) -> type[nn.Module]:
    """Returns a module of `blocks` blocks in a row, whose parameters are stacked along axis 0.

    A block takes what it changes, constants and `train`, and returns (what it changed, None).
    unroll: blocks in one turn of the loop, in training: elsewhere nothing is stacked up for a
    gradient, and a loop is as fast.
    """
    unroll = min(unroll, blocks) if train else 1
    return nn.scan(
        remat_module(block, policy, static_argnums=3, looped=unroll < blocks),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=blocks,
        unroll=unroll,
    )


def save_bits(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """Returns x, under a name that the policies of REMAT know, saved as its bits.

    JAX rounds the numbers it saves to their own dtype again, in case a compiler computes in a
    wider one. Behind a kernel that is another pass over memory; bits are not rounded.
    """
    return cast(Array, _save_bits(x, name))


def _save_bits_forward(x: Array, name: str) -> tuple[Array, None]:
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    saved = checkpoint_name(jax.lax.bitcast_convert_type(x, bits), name)
    return jax.lax.bitcast_convert_type(saved, x.dtype), None


_save_bits = jax.custom_vjp(lambda x, name: x, nondiff_argnums=(1,))
_save_bits.defvjp(_save_bits_forward, lambda name, _, slope: (slope,))
