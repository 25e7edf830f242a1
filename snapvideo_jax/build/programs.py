"""Config -> the three programs that run: a training step, a sampler, one call of the network.

Each is assembled here and nowhere else, with the attention of its mesh, shardings, donation and
compiler options. Training, sampling, sample grids, planner, benchmark and scaling study all take
their programs from here, so what is planned is what runs. Shapes come first, then shardings, then
jitted functions, which compile where they are first called.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int

from snapvideo_jax import generator, keys
from snapvideo_jax.build import model, recipe
from snapvideo_jax.build.config import Config
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import sampler
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.generator import SamplerSettings
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.parallel import chips, rules
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.training.state import TrainState, init_state
from snapvideo_jax.training.step import STREAMS, draw, train_step

# name -> shape and dtype, and in programs the sharding, of an entry of a batch
AbstractBatch = dict[str, jax.ShapeDtypeStruct]


def training_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays the mesh over `devices`, by default all of the job; the batch must split over it."""
    mesh = meshes.make_mesh(config.mesh.to_dict(), devices or jax.devices())
    training = config.training
    meshes.check_batch(mesh, "training.batch_size", training.batch_size, training.accumulate)
    if config.model.name == "unet" and mesh.shape["group"] > 1:
        raise ConfigError(f"mesh.group={mesh.shape['group']}: a U-Net has nothing to split over it")
    return mesh


def mesh_of_run(config: Config) -> Mesh:
    """Lays a run's mesh over all devices if it fits them; else they are one fsdp axis."""
    sizes = config.mesh.to_dict()
    try:
        meshes.resolve([sizes[axis] for axis in meshes.AXES], jax.device_count())
    except ConfigError:
        sizes = {"data": 1, "fsdp": -1, "group": 1, "tensor": 1}
    return meshes.make_mesh(sizes, jax.devices())


def counting_mesh() -> Mesh:
    """Returns a mesh of one device to count on: a CPU, unless JAX may use none."""
    return meshes.make_mesh(dict.fromkeys(meshes.AXES, 1), _cpu_or(jax.devices()))


def _cpu_or(devices: Sequence[jax.Device]) -> Sequence[jax.Device]:
    """Returns one CPU, or the first of `devices` where JAX may use none."""
    with contextlib.suppress(RuntimeError):
        devices = jax.devices("cpu")
    return devices[:1]


def without_recompute(
    config: Config, devices: Sequence[jax.Device]
) -> tuple[Config, Sequence[jax.Device]]:
    """Returns what to count FLOPs by: the config without remat, and one device without a kernel.

    Remat and the gradient of an attention kernel compute things again, which the mathematics does
    not ask for. The device is a CPU, unless JAX may use none.
    """
    plain = copy.deepcopy(config)
    plain.model.update(remat="none", attention="plain")
    plain.mesh.update(dict.fromkeys(meshes.AXES, 1))
    return plain, _cpu_or(devices)


def with_batch_size(config: Config, batch_size: int) -> Config:
    """Returns a copy of the config whose batches have `batch_size` examples."""
    changed = copy.deepcopy(config)
    changed.training.batch_size = batch_size
    return changed


def with_video(config: Config, video: tuple[int, int, int]) -> Config:
    """Returns a copy of the config for videos of (T, H, W) pixels, without padding.

    Padding grows with the height. FIT has as many groups and latents as before: its groups grow, as
    those of the paper's upsampler are larger. Raises ConfigError where they cannot.
    """
    changed, data = copy.deepcopy(config), config.data
    before, group = (data.num_frames, data.height, data.width), config.model.fit.group
    if config.model.name == "fit":
        grown = [(g * new, old) for g, new, old in zip(group, video, before, strict=True)]
        if any(patches % old for patches, old in grown):
            sizes = " x ".join(map(str, video))
            raise ConfigError(
                f"videos of {sizes}: model.fit.group={tuple(group)} is for {before} and cannot "
                "grow with them; take multiples of those"
            )
        changed.model.fit.group = tuple(patches // old for patches, old in grown)
    frames, height, width = video
    changed.data.update(num_frames=frames, height=height, width=width)
    changed.data.pad_rows = data.pad_rows * height // data.height
    return changed


def with_arithmetic(config: Config, *, dtype: str, attention: str) -> Config:
    """Returns a copy of the config with another `model.dtype` and `model.attention`."""
    changed = copy.deepcopy(config)
    changed.model.update(dtype=dtype, attention=attention)
    return changed


def abstract_batch(config: Config) -> AbstractBatch:
    """Returns shapes and dtypes of a global training batch."""
    data, B = config.data, config.training.batch_size
    text = {"text_ids": jax.ShapeDtypeStruct((B, data.text_length), np.int32)}
    if config.model.text_encoder.source == "stored":
        states = (B, data.text_length, config.model.text_encoder.channels)
        text = {"text": jax.ShapeDtypeStruct(states, jnp.bfloat16)}
    return text | {
        "video": jax.ShapeDtypeStruct((B, data.num_frames, data.height, data.width, 3), np.uint8),
        "frame_interval": jax.ShapeDtypeStruct((B,), np.float32),
        "source_size": jax.ShapeDtypeStruct((B, 2), np.int32),
        "text_mask": jax.ShapeDtypeStruct((B, data.text_length), np.bool_),
    }


def blank_batch(config: Config, batch_size: int = 1) -> dict[str, jax.Array]:
    """Makes examples of zeros, for initialization and for measuring."""
    rows = lambda leaf: jnp.zeros((batch_size,) + leaf.shape[1:], leaf.dtype)
    return jax.tree.map(rows, abstract_batch(config))


def abstract_params(config: Config, denoiser: Denoiser, mesh: Mesh) -> Params:
    """Returns shapes, dtypes and shardings of the parameters, all in float32."""
    params = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), blank_batch(config)))
    return _with_shardings(params, rules.shardings(params, mesh))


def abstract_model(config: Config, vocabulary_size: int) -> tuple[Denoiser, Params]:
    """Returns a denoiser to count with, and its abstract parameters, on one device."""
    mesh = counting_mesh()
    denoiser = model.denoiser(config, vocabulary_size, mesh)
    return denoiser, abstract_params(config, denoiser, mesh)


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """A run's programs: `init()` -> state, `step(state, batch)` -> state, metrics.

    abstract_state and abstract_batch carry the shape, dtype and sharding of every leaf; checkpoints
    restore to the one, and batches are laid out as the other says. `step` takes its state's memory.
    """

    denoiser: Denoiser
    mesh: Mesh
    abstract_state: TrainState
    abstract_batch: AbstractBatch
    init: Callable[[], TrainState]
    step: Callable[[TrainState, dict], tuple[TrainState, dict]]


def train_program(
    config: Config, vocabulary_size: int, devices: Sequence[jax.Device] | None = None
) -> TrainProgram:
    """Assembles the training step on the mesh of `config`."""
    mesh = training_mesh(config, devices)
    denoiser = model.denoiser(config, vocabulary_size, mesh)
    optimizer = recipe.optimizer(config)

    def init() -> TrainState:
        return init_state(denoiser, optimizer, config.seed, blank_batch(config))

    state = jax.eval_shape(init)
    state_places, batch = rules.shardings(state, mesh), abstract_batch(config)
    batch_places = dict.fromkeys(batch, meshes.batch_sharding(mesh)) | {
        "video": grouped_video_sharding(denoiser, mesh)
    }
    bound_step = functools.partial(
        train_step,
        denoiser=denoiser,
        optimizer=optimizer,
        objective=recipe.objective(config),
        ema_half_life=config.training.ema_half_life,
        ema_ramp=config.training.ema_ramp,
        seed=config.seed,
        accumulate=config.training.accumulate,
    )

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        with rules.activations_on(mesh):
            return bound_step(state, batch)

    return TrainProgram(
        denoiser=denoiser,
        mesh=mesh,
        abstract_state=_with_shardings(state, state_places),
        abstract_batch=_with_shardings(batch, batch_places),
        init=jax.jit(init, out_shardings=state_places),
        step=jax.jit(
            step,
            in_shardings=(state_places, batch_places),
            out_shardings=(state_places, meshes.replicated(mesh)),
            donate_argnums=0,
            # The U-Net's blocks are not scanned: with this it compiles for more than 40 minutes.
            compiler_options=None if config.model.name == "unet" else chips.options(mesh),
        ),
    )


def text_dropout(
    config: Config, step: int
) -> tuple[Bool[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """Returns which rows of a step lose their text in its first and in its second pass.

    step: that is done before it; 0 is the first.
    """
    denoiser = model.denoiser(config, vocabulary_size=1, mesh=counting_mesh())
    leaf, objective = abstract_batch(config)["video"], recipe.objective(config)

    @jax.jit  # so that videos and noise, on which nothing depends, are not made
    def keep_text() -> tuple[Array, Array]:
        streams, video = keys.streams(config.seed, step, STREAMS), jnp.zeros(leaf.shape, leaf.dtype)
        return draw(denoiser, objective, video, streams).keep_text

    first, second = keep_text()
    return ~np.asarray(first), ~np.asarray(second)


class SamplerProgram(NamedTuple):
    """A sampler that can pause, for one model, mesh and set of settings.

    start: (request, seeds) -> state. advance: (params, request, seeds, state, first, last) ->
    (state after the calls first .. last - 1 of 0 .. `num_calls` - 1, `last` as an
    array: to fetch it is to wait for them); takes the state's memory. finish: state -> videos.
    """

    denoiser: Denoiser
    mesh: Mesh
    num_calls: int
    start: Callable[..., sampler.SamplerState]
    advance: Callable[..., tuple[sampler.SamplerState, Int[Array, ""]]]
    finish: Callable[[sampler.SamplerState], Array]


@functools.lru_cache(maxsize=8)
def sampler_program(denoiser: Denoiser, mesh: Mesh, settings: SamplerSettings) -> SamplerProgram:
    """Assembles the sampler of a denoiser that was made for `mesh`.

    The batch is split over the mesh, and videos on the way as FIT's groups are.
    """
    state_places = sampler_state_shardings(denoiser, mesh)
    jit = functools.partial(jax.jit, compiler_options=chips.options(mesh))

    def advance(
        params: Params,
        request: generator.Request,
        seeds: Int[Array, " B"],
        state: sampler.SamplerState,
        first: Int[Array, ""],
        last: Int[Array, ""],
    ) -> tuple[sampler.SamplerState, Int[Array, ""]]:
        with rules.activations_on(mesh):
            inputs = generator.sampler_inputs(denoiser, settings, params, request, seeds)
            state = jax.lax.fori_loop(first, last, sampler.call_of(inputs), state)
        return state, jnp.maximum(first, last)

    return SamplerProgram(
        denoiser=denoiser,
        mesh=mesh,
        num_calls=settings.num_calls,
        start=jit(
            functools.partial(generator.start, denoiser, settings), out_shardings=state_places
        ),
        advance=jit(
            advance, out_shardings=(state_places, meshes.replicated(mesh)), donate_argnums=3
        ),
        finish=jit(
            lambda state: denoiser.decode(state.D), out_shardings=meshes.batch_sharding(mesh)
        ),
    )


class SamplerArguments(NamedTuple):
    """What `SamplerProgram.advance` takes, abstract; `first` and `last` are numbers."""

    params: Params
    request: generator.Request
    seeds: jax.ShapeDtypeStruct
    state: sampler.SamplerState
    first: jax.ShapeDtypeStruct
    last: jax.ShapeDtypeStruct


def sampler_arguments(config: Config, program: SamplerProgram) -> SamplerArguments:
    """Returns arguments for `training.batch_size` prompts, kernels in the network's dtype."""
    denoiser, mesh, B = program.denoiser, program.mesh, config.training.batch_size
    rows = meshes.batch_sharding(mesh)
    request = {name: leaf for name, leaf in abstract_batch(config).items() if name != "video"}
    request["window"] = jax.ShapeDtypeStruct((B,), np.int32)
    if denoiser.low_res_size is not None:
        video = (B, denoiser.video_shape[0], *denoiser.low_res_size, 3)
        request["low_res"] = jax.ShapeDtypeStruct(video, np.uint8)
    request = _with_shardings(request, dict.fromkeys(request, rows))
    seeds = jax.ShapeDtypeStruct((B,), np.int32, sharding=rows)
    state = jax.eval_shape(program.start, request, seeds)
    params = jax.eval_shape(denoiser.cast_kernels, abstract_params(config, denoiser, mesh))
    number = jax.ShapeDtypeStruct((), np.int32)
    return SamplerArguments(
        params=_with_shardings(params, rules.shardings(params, mesh)),
        request=request,
        seeds=seeds,
        state=_with_shardings(state, sampler_state_shardings(denoiser, mesh)),
        first=number,
        last=number,
    )


def sampler_state_shardings(denoiser: Denoiser, mesh: Mesh) -> sampler.SamplerState:
    """Returns where a sampler's videos and latents lie between calls."""
    video: Any = grouped_video_sharding(denoiser, mesh)
    latents = jax.tree.map(lambda _: rules.latents_sharding(mesh), denoiser.no_latents(1))
    return sampler.SamplerState(x=video, point=video, D=video, carry=latents)


@dataclasses.dataclass(frozen=True)
class NetworkProgram:
    """One call of the network as samplers run it: `call(params, *inputs)` -> F, latents.

    `init()` -> params, kernels in the network's dtype. abstract_params and abstract_inputs have
    the shapes, dtypes and shardings of params and of the inputs of `training.batch_size` videos.
    """

    denoiser: Denoiser
    mesh: Mesh
    abstract_params: Params
    abstract_inputs: tuple
    init: Callable[[], Params]
    call: Callable[..., tuple]


def network_program(
    config: Config, vocabulary_size: int, devices: Sequence[jax.Device] | None = None
) -> NetworkProgram:
    """Assembles the network alone on the mesh of `config`: no noise law, guidance or sampler."""
    mesh = training_mesh(config, devices)
    denoiser = model.denoiser(config, vocabulary_size, mesh)

    def init_float32() -> Params:
        return denoiser.init(jax.random.key(config.seed), blank_batch(config))

    def init() -> Params:
        return denoiser.cast_kernels(init_float32())

    def inputs() -> tuple:
        return denoiser.inputs(init_float32(), blank_batch(config, config.training.batch_size))

    params, abstract_inputs = jax.eval_shape(init), jax.eval_shape(inputs)
    video, rows = grouped_video_sharding(denoiser, mesh), meshes.batch_sharding(mesh)
    _, _, conditions, latents = abstract_inputs
    condition_places = dataclasses.replace(
        jax.tree.map(lambda _: rows, conditions),
        low_res=None if conditions.low_res is None else video,
    )
    latent_places = jax.tree.map(lambda _: rules.latents_sharding(mesh), latents)
    input_places = video, rows, condition_places, latent_places
    param_places = rules.shardings(params, mesh)

    def call(params: Params, *inputs: Any) -> tuple:
        with rules.activations_on(mesh):
            return denoiser.F(params, *inputs)

    return NetworkProgram(
        denoiser=denoiser,
        mesh=mesh,
        abstract_params=_with_shardings(params, param_places),
        abstract_inputs=_with_shardings(abstract_inputs, input_places),
        init=jax.jit(init, out_shardings=param_places),
        call=jax.jit(
            call,
            out_shardings=(video, latent_places),
            compiler_options=chips.options(mesh),
        ),
    )


def grouped_video_sharding(denoiser: Denoiser, mesh: Mesh) -> NamedSharding:
    """Returns where videos lie: examples split, and pixels as FIT's groups are.

    Videos are whole where rows are padded, since pixels then do not end with a group.
    """
    network = denoiser.network
    grouped = isinstance(network, FIT) and not denoiser.pad_rows
    return meshes.video_sharding(mesh, network.grouping.groups(network.video) if grouped else None)


def _with_shardings(tree: Any, shardings: Any) -> Any:
    """Gives each abstract leaf its sharding."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, tree, shardings)
