"""What the forward pass keeps for the backward pass, and what that computes again."""

import math
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jaxtyping import Array, Float

# (primitive, its inputs, its parameters) -> whether jax.checkpoint keeps what it makes.
Policy = Callable[..., Any]


def and_statistics(policy: Policy) -> Policy:
    """`policy`, which also keeps sums of 64 numbers or more, as norms make them: they are small,
    and to make them again is another pass over all of their terms.
    """

    def saves(primitive: Primitive, *of: Any, **how: Any) -> Any:
        sums = primitive.name == "reduce_sum"
        if sums and math.prod(of[0].shape[axis] for axis in how["axes"]) >= 64:
            return True
        return policy(primitive, *of, **how)

    return saves


# What the backward pass computes again instead of keeping, by name: nothing; everything but the
# products with kernels, attention, the words of dropout and statistics; the same, but products and
# attention wait in the memory of the host meanwhile; or all of a block but its statistics.
POLICIES = jax.checkpoint_policies
REMAT = {
    "none": None,
    "dots": and_statistics(POLICIES.save_only_these_names("product", "attention", "dropout")),
    "offload": and_statistics(
        POLICIES.save_and_offload_only_these_names(
            names_which_can_be_saved=["dropout"],
            names_which_can_be_offloaded=["product", "attention"],
            offload_src="device",
            offload_dst="pinned_host",
        )
    ),
    "block": and_statistics(POLICIES.nothing_saveable),
}


def rematerialized(
    block: type[nn.Module], policy: str, static_argnums: int, looped: bool = False
) -> type[nn.Module]:
    """`block` under the policy of REMAT; `static_argnums` is its `train`, self counted as 0.

    In a loop over blocks (`looped`) the compiler cannot undo it. Elsewhere it is kept from that,
    but where little is computed again: there it may keep what it takes to be worth it.
    """
    if REMAT[policy] is None:
        return block
    return nn.remat(
        block,
        policy=REMAT[policy],
        static_argnums=(static_argnums,),
        prevent_cse=not looped and policy != "dots",
    )


def kept(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """x under a name that policies of REMAT know, kept as the bits that it is.

    Numbers that are kept JAX rounds to their own dtype again, in fear of a compiler that computes
    in a wider one; behind a kernel that is a pass over memory of its own.
    """
    return cast(Array, _kept(x, name))


def _keep(x: Array, name: str) -> tuple[Array, None]:
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    held = checkpoint_name(jax.lax.bitcast_convert_type(x, bits), name)
    return jax.lax.bitcast_convert_type(held, x.dtype), None


_kept = jax.custom_vjp(lambda x, name: x, nondiff_argnums=(1,))
_kept.defvjp(_keep, lambda name, _, slope: (slope,))
