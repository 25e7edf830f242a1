"""The programs that runs consist of, with abstract arguments, ready for any compiler."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from snapvideo_jax import build, generator
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import attention, chips, rules
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import cost
from snapvideo_jax.sampling import generate

# Ids of a text encoder that is trained along; its table is small beside everything else.
VOCABULARY = 256
KINDS = ("train", "sample", "upsample")


class Program(NamedTuple):
    """A jitted `call` and its abstract `arguments`.

    state: those that stay on the device from call to call, by name. given: those that do not.
    gradients: like what of the state; None where there are none. videos: of one call; calls: that
    make them. model_flops: of the mathematics, over all devices; what is computed again, or for
    nothing, is not in.
    """

    call: Callable[..., Any]
    arguments: tuple
    state: dict[str, Any]
    given: dict[str, Any]
    gradients: Any
    mesh: Mesh
    videos: int
    calls: int
    model_flops: int = 0

    @property
    def flops(self) -> int:
        """Of one call over all devices, with what is computed again."""
        return cost.flops(self.call, *self.arguments)


def program(config: Config, kind: str, devices: Sequence[jax.Device]) -> Program:
    """One of KINDS: a training step, or one evaluation of the sampler for a batch.

    The batch is `training.batch_size` videos. "sample" and "upsample" are one for an upsampler;
    ConfigError where the config is of none.
    """
    if kind == "train":
        return _counted(_train, config, devices)
    if kind == "upsample" and not config.data.low_res:
        raise ConfigError("this config is a first stage; --program=sample is its sampler")
    return _counted(_sample, config, devices)


def evaluation(config: Config, devices: Sequence[jax.Device]) -> Program:
    """One evaluation of the network for `training.batch_size` videos, as benchmarks time it."""
    return _counted(_evaluation, config, devices)


def _counted(
    make: Callable[[Config, Sequence[jax.Device]], Program],
    config: Config,
    devices: Sequence[jax.Device],
) -> Program:
    """What `make` makes, with the FLOPs of the same mathematics where nothing is done twice."""
    plain = make(*build.once(config, devices))
    return make(config, devices)._replace(model_flops=plain.flops)


def _train(config: Config, devices: Sequence[jax.Device]) -> Program:
    made = build.program(config, VOCABULARY, devices)
    arguments = made.abstract_state, made.abstract_batch
    state = made.abstract_state
    return Program(
        call=made.step,
        arguments=arguments,
        state={"parameters": state.params, "moments": state.opt_state, "ema": state.ema},
        given=_text_apart(made.abstract_batch),
        gradients=state.params,
        mesh=made.mesh,
        videos=config.training.batch_size,
        calls=1,
    )


def _sample(config: Config, devices: Sequence[jax.Device]) -> Program:
    mesh = build.mesh(config, devices)
    denoiser = build.denoiser(config, VOCABULARY, attention.for_mesh(mesh))
    plan = generate.plan_from(config)
    walk = generator.walk(denoiser, plan)
    state_lies = generate.state_shardings(denoiser, mesh)

    def evaluate(params: Any, request: dict, seeds: Any, state: Any) -> Any:
        with rules.activations_on(mesh):
            return walk.go(params, request, seeds, state, 0, 1)

    place = lambda leaf, lies: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lies)
    init = lambda: denoiser.lean(denoiser.init(jax.random.key(0), build.blank_batch(config)))
    params = jax.eval_shape(init)
    params = jax.tree.map(place, params, rules.shardings(params, mesh))
    request = generate.abstract_request(config, mesh)
    rows = meshes.batch_sharding(mesh)
    seeds = jax.ShapeDtypeStruct((config.training.batch_size,), np.int32, sharding=rows)
    state = jax.eval_shape(walk.start, request, seeds)
    state = jax.tree.map(place, state, state_lies)
    arguments = params, request, seeds, state
    call = jax.jit(
        evaluate, out_shardings=state_lies, donate_argnums=3, compiler_options=chips.options(mesh)
    )
    return Program(
        call=call,
        arguments=arguments,
        state={"parameters": params, "state": state},
        given=_text_apart(request),
        gradients=None,
        mesh=mesh,
        videos=config.training.batch_size,
        calls=walk.evaluations,
    )


def _evaluation(config: Config, devices: Sequence[jax.Device]) -> Program:
    made = build.evaluation(config, VOCABULARY, devices)
    params, inputs = made.abstract
    return Program(
        call=made.call,
        arguments=(params, *inputs),
        state={"parameters": params},
        given={"batch": inputs},
        gradients=None,
        mesh=made.mesh,
        videos=config.training.batch_size,
        calls=1,
    )


def _text_apart(batch: dict[str, Any]) -> dict[str, Any]:
    text = {name: leaf for name, leaf in batch.items() if name.startswith("text")}
    rest = {name: leaf for name, leaf in batch.items() if name not in text}
    return {"batch": rest, "text": text}


def share(tree: Any) -> int:
    """Bytes that one device holds of the abstract arrays of `tree`."""
    return sum(
        jnp.dtype(leaf.dtype).itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(tree)
    )
