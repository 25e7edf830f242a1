"""LAMB and Adam as the paper used them (Table 9), their schedule, clipping, masks, and the EMA.

LAMB (You et al. 2020) differs from `optax.lamb` in two respects (docs/choices.md): biases and
norms are left out of weight decay and of the trust ratio, which would freeze leaves that start
at zero for thousands of steps; and layers stacked by `nn.scan` get one trust ratio each.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from snapvideo_jax.trees import names

# Leaves that are decayed and adapted: kernels and tables. All others are biases and norm scales.
ADAPTED = ("kernel", "embedding", "positions", "latent_table", "position_bias")
# Modules whose leaves are stacked along axis 0, one slice a layer.
STACKED = ("blocks",)


def adapted_mask(params: Any) -> Any:
    """Marks the leaves that take weight decay and the trust ratio, chosen by name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: names(path)[-1] in ADAPTED, params)


def l2_norms_by_layer(path: tuple, x: Array) -> Array:
    """Returns the l2 norm of each layer's slice of x, broadcastable to x."""
    stacked = any(name in STACKED for name in names(path))
    axes = tuple(range(1 if stacked else 0, x.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """update = update |params| / |update| by layer, or as it is where a norm is 0 (LAMB)."""

    def scale(path, update, param):
        if isinstance(update, optax.MaskedNode):
            return update
        norm, update_norm = l2_norms_by_layer(path, param), l2_norms_by_layer(path, update)
        ratio = jnp.where((norm > 0) & (update_norm > 0), norm / update_norm, 1.0)
        return update * ratio

    def apply(updates, state, params=None):
        is_leaf = lambda node: isinstance(node, optax.MaskedNode)
        scaled = jax.tree_util.tree_map_with_path(scale, updates, params, is_leaf=is_leaf)
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), apply)


def global_norm(grads: Any) -> Float[Array, ""]:
    """Returns the l2 norm of all leaves as one vector.

    Leaves of one shape and layer name, which a mesh splits alike, are squared and added before they
    are summed: a TPU reads several arrays at a time faster than one.
    """
    leaves_by_kind = collections.defaultdict(list)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        leaves_by_kind[names(path)[-2:], leaf.shape].append(leaf)
    squares = (sum(map(jnp.square, leaves)) for leaves in leaves_by_kind.values())
    return jnp.sqrt(sum(map(jnp.sum, squares)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """update = update min(1, max_norm / |update|), as Optax's, with `global_norm`."""

    def apply(updates, state, params=None):
        norm = global_norm(updates)
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda update: update * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), apply)


def warmup_cosine(learning_rate: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Rises linearly from 0 over `warmup_steps`, then falls by a half cosine to 0 at the end."""
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, steps)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """Chains global-norm clipping and "lamb" or "adam" (decoupled decay, the same mask)."""
    trust = optax.masked(scale_by_layer_trust_ratio(), adapted_mask)
    return optax.chain(
        clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, adapted_mask),
        *([trust] if name == "lamb" else []),
        optax.scale_by_learning_rate(schedule),
    )


def num_updates(opt_state: optax.OptState) -> Int[Array, ""]:
    """Returns the number of updates, by which the schedule goes; a skipped step makes none."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def ema_decay(completed_steps: Int[Array, ""], half_life: float, ramp: float) -> Float[Array, ""]:
    """beta = 0.5^(1 / min(half_life, ramp * k)), k steps completed before this one (EDM).

    k = 0 gives 0: the first update copies the weights. Half-life in steps.
    """
    effective = jnp.minimum(half_life, ramp * completed_steps.astype(jnp.float32))
    return jnp.where(effective > 0, 0.5 ** (1 / jnp.maximum(effective, 1e-8)), 0.0)


def update_ema(ema: Any, params: Any, decay: Float[Array, ""]) -> Any:
    """ema = beta ema + (1 - beta) params, leaf by leaf, in float32."""
    return jax.tree.map(lambda e, p: p + decay * (e - p), ema, params)
