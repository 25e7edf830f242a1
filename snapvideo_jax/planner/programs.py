"""The programs that run, with their arguments as memory holds them, ready to count and compile."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from snapvideo_jax import build, trees
from snapvideo_jax.build import Config
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import attention
from snapvideo_jax.planner import cost

# Ids of a text encoder that is trained along; its table is small beside everything else.
VOCABULARY = 256
KINDS = ("train", "sample", "upsample")  # of launch.plan; benchmarks also run "network"


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A jitted `call` and its abstract `arguments`.

    resident: arguments that stay on the devices from call to call, by name; the rest are `inputs`.
    gradients: a tree as large as the gradients; None where there are none. videos: of one call, of
    which `calls` make a video. init: makes the first argument; None for the sampler, which is not
    timed. model_flops: of the mathematics, over all devices, without what is computed again or for
    nothing.
    """

    call: Any
    arguments: tuple
    resident: dict[str, Any]
    inputs: dict[str, Any]
    gradients: Any
    denoiser: Denoiser
    mesh: Mesh
    videos: int
    calls: int
    init: Callable[[], Any] | None = None
    model_flops: int = 0

    @property
    def network(self) -> str:
        """Name of the network: "fit", "unet" or "dit"."""
        return type(self.denoiser.network).__name__.lower()

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""
        return cost.parameters(self.resident["parameters"]["network"])

    @property
    def dtype(self) -> str:
        """Name of the dtype of matrix products."""
        return jnp.dtype(self.denoiser.network.dtype).name

    @property
    def attention(self) -> str:
        """Name of the kernel that attends where it fits."""
        return attention.kernel_name(self.denoiser.network.attend)

    @property
    def flops(self) -> int:
        """FLOPs of one call on all devices, with what is computed again."""
        return cost.flops(self.call, *self.arguments, trips=1)

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes that one device holds of each part of the arguments."""
        parts = self.resident | self.inputs
        return {name: trees.device_bytes(tree) for name, tree in parts.items()}


def planned(config: Config, kind: str, devices: Sequence[jax.Device]) -> PlannedProgram:
    """Returns the program of a `kind` for a batch of `training.batch_size` videos.

    kind: "train" is a training step; "sample" one call of the guided sampler, which for an
    upsampler is also called "upsample"; "network" one call of the network alone. Raises
    ConfigError for "upsample" where the config is of a first stage.
    """
    if kind == "upsample" and not config.data.low_res:
        raise ConfigError("this config is a first stage; --program=sample is its sampler")
    program = _assembly(kind)(config, devices)
    return dataclasses.replace(program, model_flops=model_flops(config, kind, devices))


def model_flops(config: Config, kind: str, devices: Sequence[jax.Device]) -> int:
    """Counts the FLOPs of a planned program's mathematics, over all devices; that takes seconds."""
    return _assembly(kind)(*build.without_recompute(config, devices)).flops


def _assembly(kind: str) -> Callable[[Config, Sequence[jax.Device]], PlannedProgram]:
    return {"train": _train, "network": _network}.get(kind, _sample)


def _train(config: Config, devices: Sequence[jax.Device]) -> PlannedProgram:
    program = build.train_program(config, VOCABULARY, devices)
    state, batch = program.abstract_state, program.abstract_batch
    return PlannedProgram(
        call=program.step,
        arguments=(state, batch),
        resident={"parameters": state.params, "moments": state.opt_state, "ema": state.ema},
        inputs=_text_apart(batch),
        gradients=state.params,
        denoiser=program.denoiser,
        mesh=program.mesh,
        videos=config.training.batch_size,
        calls=1,
        init=program.init,
    )


def _sample(config: Config, devices: Sequence[jax.Device]) -> PlannedProgram:
    mesh = build.training_mesh(config, devices)
    denoiser = build.denoiser(config, VOCABULARY, mesh)
    program = build.sampler_program(denoiser, mesh, build.sampler_settings(config))
    arguments = build.sampler_arguments(config, program)
    return PlannedProgram(
        call=program.advance,
        arguments=arguments,
        resident={"parameters": arguments.params, "state": arguments.state},
        inputs=_text_apart(arguments.request),
        gradients=None,
        denoiser=denoiser,
        mesh=mesh,
        videos=config.training.batch_size,
        calls=program.num_calls,
    )


def _network(config: Config, devices: Sequence[jax.Device]) -> PlannedProgram:
    program = build.network_program(config, VOCABULARY, devices)
    return PlannedProgram(
        call=program.call,
        arguments=(program.abstract_params, *program.abstract_inputs),
        resident={"parameters": program.abstract_params},
        inputs={"batch": program.abstract_inputs},
        gradients=None,
        denoiser=program.denoiser,
        mesh=program.mesh,
        videos=config.training.batch_size,
        calls=1,
        init=program.init,
    )


def _text_apart(batch: dict[str, Any]) -> dict[str, Any]:
    """Splits a batch into its text and the rest."""
    text = {name: leaf for name, leaf in batch.items() if name.startswith("text")}
    rest = {name: leaf for name, leaf in batch.items() if name not in text}
    return {"batch": rest, "text": text}
