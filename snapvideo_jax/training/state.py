"""The state that training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from snapvideo_jax import keys
from snapvideo_jax.denoiser import Denoiser


@flax.struct.dataclass
class TrainState:
    """step: completed steps, which is also the position in the data. ema, params: equal trees."""

    step: Any  # int32 []; in trees of shapes or shardings, one of those
    params: Any
    ema: Any
    opt_state: optax.OptState


def init_state(
    denoiser: Denoiser, optimizer: optax.GradientTransformation, seed: int, batch: dict
) -> TrainState:
    """Makes the state before step 0; under `jax.eval_shape` only its shapes."""
    params = denoiser.init(keys.streams(seed, 0, ("init",))["init"], batch)
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))
