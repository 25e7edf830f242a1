"""Config -> the programs that run, with shapes, shardings, donation and compiler options."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from snapvideo_jax.build.config import Config
from snapvideo_jax.build.model import denoiser, network
from snapvideo_jax.build.recipe import objective, optimizer
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.parallel import attention, chips, rules
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.training import step as training_step
from snapvideo_jax.training.state import TrainState, init_state


def mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, all of the job by default; the batch must split over it."""
    made = meshes.make_mesh(config.mesh.to_dict(), devices or jax.devices())
    training = config.training
    meshes.check_batch(made, "training.batch_size", training.batch_size, training.accumulate)
    if config.model.name == "unet" and made.shape["group"] > 1:
        raise ConfigError(f"mesh.group={made.shape['group']}: only FIT has patch groups to split")
    return made


def once(config: Config, devices: Sequence[jax.Device]) -> tuple[Config, Sequence[jax.Device]]:
    """A config and a device for the same mathematics, in which nothing is computed again.

    Neither by remat nor in the gradient of an attention kernel: on one CPU, which has none, unless
    JAX may use no CPU. To count FLOPs by.
    """
    with contextlib.suppress(RuntimeError):
        devices = jax.devices("cpu")
    plain = copy.deepcopy(config)
    plain.model.remat = "none"
    plain.mesh.update(dict.fromkeys(meshes.AXES, 1))
    return plain, devices[:1]


def abstract_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global training batch."""
    data, B = config.data, config.training.batch_size
    video = (B, data.num_frames, data.height, data.width, 3)
    text = {"text_ids": jax.ShapeDtypeStruct((B, data.text_length), np.int32)}
    if config.model.text_encoder.source == "stored":
        states = (B, data.text_length, config.model.text_encoder.channels)
        text = {"text": jax.ShapeDtypeStruct(states, jnp.bfloat16)}
    return text | {
        "video": jax.ShapeDtypeStruct(video, np.uint8),
        "frame_interval": jax.ShapeDtypeStruct((B,), np.float32),
        "source_size": jax.ShapeDtypeStruct((B, 2), np.int32),
        "text_mask": jax.ShapeDtypeStruct((B, data.text_length), np.bool_),
    }


def batch_shardings(config: Config, mesh: Mesh) -> dict[str, jax.sharding.NamedSharding]:
    """Where a batch lies on `mesh`: examples split, and videos cut as FIT's groups are."""
    split = meshes.batch_sharding(mesh)
    video = video_sharding(network(config), config.data.pad_rows, mesh)
    return dict.fromkeys(abstract_batch(config), split) | {"video": video}


def video_sharding(network: Any, pad_rows: int, mesh: Mesh) -> jax.sharding.NamedSharding:
    """Where videos lie; whole where rows are padded, since pixels then do not end with a group."""
    grouped = isinstance(network, FIT) and not pad_rows
    grid = network.cut.grid(network.video) if grouped else None
    return meshes.video_sharding(mesh, grid)


def blank_batch(config: Config, batch_size: int = 1) -> dict[str, jax.Array]:
    """Examples of zeros, for initialization and for measuring."""
    rows = lambda s: jnp.zeros((batch_size,) + s.shape[1:], s.dtype)
    return jax.tree.map(rows, abstract_batch(config))


def abstract_params(config: Config, made: Denoiser) -> Any:
    """Shapes, dtypes and shardings of the parameters alone, over all devices of the job."""
    shapes_only = jax.eval_shape(lambda: made.init(jax.random.key(0), blank_batch(config)))
    over = meshes.make_mesh(config.mesh.to_dict(), jax.devices())
    return jax.tree.map(_place, shapes_only, rules.shardings(shapes_only, over))


@dataclasses.dataclass(frozen=True)
class Program:
    """A training run's compiled parts: `init()` -> state, `step(state, batch)` -> state, metrics.

    abstract_state and abstract_batch carry the shape, dtype and sharding of every leaf; checkpoints
    restore to the one, and batches are laid out as the other says.
    """

    denoiser: Denoiser
    mesh: Mesh
    abstract_state: TrainState
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    step: Callable[[TrainState, dict], tuple[TrainState, dict]]


def program(
    config: Config, vocabulary_size: int, devices: Sequence[jax.Device] | None = None
) -> Program:
    """Shapes first, then shardings, then jitted functions, which compile when first called."""
    made_mesh = mesh(config, devices)
    made = denoiser(config, vocabulary_size, attention.for_mesh(made_mesh))
    chain = optimizer(config)

    def init() -> TrainState:
        return init_state(made, chain, config.seed, blank_batch(config))

    shapes_only = jax.eval_shape(init)
    placed, split = rules.shardings(shapes_only, made_mesh), batch_shardings(config, made_mesh)
    update = functools.partial(
        training_step.train_step,
        denoiser=made,
        optimizer=chain,
        objective=objective(config),
        ema_half_life=config.training.ema_half_life,
        ema_ramp=config.training.ema_ramp,
        seed=config.seed,
        accumulate=config.training.accumulate,
    )

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        with rules.activations_on(made_mesh):
            return update(state, batch)

    return Program(
        denoiser=made,
        mesh=made_mesh,
        abstract_state=jax.tree.map(_place, shapes_only, placed),
        abstract_batch=jax.tree.map(_place, abstract_batch(config), split),
        init=jax.jit(init, out_shardings=placed),
        step=jax.jit(
            step,
            in_shardings=(placed, split),
            out_shardings=(placed, meshes.replicated(made_mesh)),
            donate_argnums=0,
            # The U-Net's blocks are not scanned: with this it compiles for more than 40 minutes.
            compiler_options=chips.options(made_mesh) if config.model.name == "fit" else None,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of the network as samplers ask for it: `call(params, *inputs)` -> F, latents.

    `init()` -> params, as `Denoiser.lean` keeps them. `abstract` has the shapes, dtypes and
    shardings of params and of the inputs, `training.batch_size` videos.
    """

    mesh: Mesh
    abstract: tuple[Any, tuple]
    init: Callable[[], Any]
    call: Callable[..., tuple]


def evaluation(
    config: Config, vocabulary_size: int, devices: Sequence[jax.Device] | None = None
) -> Evaluation:
    """The network alone on the mesh of `config`, without noise law, guidance or sampler."""
    made_mesh = mesh(config, devices)
    made = denoiser(config, vocabulary_size, attention.for_mesh(made_mesh))

    full = lambda: made.init(jax.random.key(config.seed), blank_batch(config))
    init = lambda: made.lean(full())
    blank = lambda: blank_batch(config, config.training.batch_size)
    params, inputs = jax.eval_shape(lambda: (init(), made.inputs(full(), blank())))
    video = video_sharding(made.network, config.data.pad_rows, made_mesh)
    rows, groups = meshes.batch_sharding(made_mesh), rules.latents_sharding(made_mesh)
    _, _, given, latents = inputs
    low_res = None if given.low_res is None else video
    told = dataclasses.replace(jax.tree.map(lambda _: rows, given), low_res=low_res)
    latents_lie = jax.tree.map(lambda _: groups, latents)
    params_lie = rules.shardings(params, made_mesh)
    placed = params_lie, (video, rows, told, latents_lie)

    def call(params: Any, *inputs: Any) -> tuple:
        with rules.activations_on(made_mesh):
            return made.F(params, *inputs)

    return Evaluation(
        mesh=made_mesh,
        abstract=jax.tree.map(_place, (params, inputs), placed),
        init=jax.jit(init, out_shardings=params_lie),
        call=jax.jit(
            call,
            out_shardings=(video, latents_lie),
            compiler_options=chips.options(made_mesh),
        ),
    )


def _place(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
