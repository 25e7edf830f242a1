"""What a configuration costs, known before anything is compiled, allocated or booked."""

from typing import NamedTuple

import jax

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.parallel import cost


class Count(NamedTuple):
    """parameters: of the network alone. forward_flops_per_video: of one evaluation of it."""

    parameters: int
    forward_flops_per_video: int


def count(config: Config) -> Count:
    """The network's size and work, from shapes alone; a text encoder is not counted."""
    denoiser, batch = build.denoiser(config, vocabulary_size=1), build.blank_batch
    params = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), batch(config)))
    inputs = jax.eval_shape(lambda params: denoiser.inputs(params, batch(config)), params)
    work = cost.flops(denoiser.F, params, *inputs)
    return Count(cost.parameters(params["network"]), work)
