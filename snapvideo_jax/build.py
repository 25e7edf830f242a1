"""The only reader of ConfigDict: config -> data, modules, optimizer, mesh, compiled step.

A config that cannot work is refused here, before anything is compiled or written, by a
ConfigError that names field, value and what would do.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from snapvideo_jax.data import order, shapes, sources
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.models.t5 import T5Encoder
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules
from snapvideo_jax.training import optim
from snapvideo_jax.training import step as training_step
from snapvideo_jax.training.state import TrainState, init_state

# A locked ml_collections.ConfigDict, whose fields are known only at run time.
Config = Any

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
OPTIMIZERS = ("lamb", "adam")
SOURCES = ("shapes", "folder")
# Fields that may be 0 (or negative, or any text); every other number must be above 0.
MAY_BE_ZERO = (
    "seed", "data.pad_rows", "data.image_fraction", "model.dropout", "diffusion.label_dropout",
    "diffusion.self_conditioning", "optimizer.warmup_steps", "optimizer.weight_decay",
    "sampling.guidance", "checkpoint.keep_every", "log.samples_every",
    "model.global_layers", "optimizer.b1", "optimizer.b2",
)  # fmt: skip
SIGNED = ("diffusion.P_mean", "data.shapes.background", "mesh.")
FRACTIONS = (
    "data.image_fraction", "model.dropout", "diffusion.label_dropout",
    "diffusion.self_conditioning", "optimizer.b1", "optimizer.b2",
)  # fmt: skip


def check(config: Config) -> None:
    """ConfigError for a number out of range, an unknown name, or sizes that do not fit."""
    for name, value in _leaves(config):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(name, number)
    _check_name("data.source", config.data.source, SOURCES)
    _check_name("model.dtype", config.model.dtype, tuple(DTYPES))
    _check_name("optimizer.name", config.optimizer.name, OPTIMIZERS)
    if config.data.source == "folder" and not config.data.path:
        raise ConfigError("data.source=folder needs --config.data.path=DIR, a folder of videos")
    if config.optimizer.warmup_steps >= config.training.steps:
        raise ConfigError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} must be below "
            f"training.steps={config.training.steps}"
        )
    if config.sampling.sigma_min >= config.sampling.sigma_max:
        raise ConfigError("sampling.sigma_min must be below sampling.sigma_max")
    order.image_rows(config.training.batch_size, config.data.image_fraction)
    network(config)
    if config.data.source == "shapes":
        world(config)


def _leaves(config: Config, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_number(name: str, value: float) -> None:
    low_ok = value >= 0 if name in MAY_BE_ZERO else value > 0 or name.startswith(SIGNED)
    high_ok = value <= 1 or name not in FRACTIONS
    if math.isfinite(value) and low_ok and high_ok:
        return
    least = "at least 0" if name in MAY_BE_ZERO else "above 0"
    raise ConfigError(
        f"{name}={value} must be {least}{' and at most 1' if name in FRACTIONS else ''}"
    )


def _check_name(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{field}={value!r} is not known; choose one of {', '.join(known)}")


def padded_video(config: Config) -> tuple[int, int, int]:
    """(T, H, W) as the network sees it."""
    return config.data.num_frames, config.data.height + config.data.pad_rows, config.data.width


def world(config: Config) -> shapes.World:
    """What source "shapes" can draw."""
    drawn = config.data.shapes
    return shapes.World(
        num_frames=config.data.num_frames,
        height=config.data.height,
        width=config.data.width,
        radius=drawn.radius,
        shapes=tuple(drawn.shapes),
        colors=tuple(drawn.colors),
        directions=tuple(drawn.directions),
        speeds=tuple((word, speed) for word, speed in drawn.speeds),
        frame_rates=tuple(config.data.frame_rates),
        background=drawn.background,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """What the pipeline reads: example(g, image), the captions there are, and a fingerprint."""

    example: Callable[[int, bool], tuple]
    captions: Callable[[], list[str]]
    fingerprint: str


def source(config: Config, report_bad: Callable[[str, str], None]) -> Source:
    """The data the config names; DataError if it is not there. `report_bad(path, reason)`."""
    data, seed = config.data, config.seed
    if data.source == "shapes":
        drawn = world(config)
        example = lambda g, image: shapes.example(drawn, seed, g, image)
        return Source(example, lambda: shapes.all_captions(drawn), repr(drawn))
    folder = sources.open_folder(data.path)
    size = (data.num_frames, data.height, data.width, tuple(data.frame_rates))
    example = lambda g, image: folder.example(seed, g, image, *size, report_bad)
    return Source(example, folder.captions, folder.fingerprint)


def network(config: Config) -> FIT:
    """The denoiser's network."""
    model = config.model
    return FIT(
        video=padded_video(config),
        cut=Grouping(model.patch, tuple(model.group)),
        patch_channels=model.patch_channels,
        latents=model.latents,
        latent_channels=model.latent_channels,
        blocks=model.blocks,
        global_layers=model.global_layers,
        patch_head_channels=model.patch_head_channels,
        latent_head_channels=model.latent_head_channels,
        conditioning_channels=model.conditioning_channels,
        dropout=model.dropout,
        table_std=model.table_std,
        dtype=DTYPES[model.dtype],
    )


def denoiser(config: Config, vocabulary_size: int) -> Denoiser:
    """Network, text encoder and coefficients."""
    text = config.model.text_encoder
    encoder = T5Encoder(
        vocabulary_size=vocabulary_size,
        channels=text.channels,
        heads=text.heads,
        head_channels=text.head_channels,
        hidden=text.hidden,
        layers=text.layers,
        dtype=DTYPES[config.model.dtype],
    )
    diffusion = config.diffusion
    return Denoiser(
        network(config), encoder, diffusion.sigma_data, diffusion.sigma_in, config.data.pad_rows
    )


def schedule(config: Config) -> optax.Schedule:
    """Step -> learning rate."""
    wanted = config.optimizer
    return optim.warmup_cosine(wanted.learning_rate, wanted.warmup_steps, config.training.steps)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping, then LAMB or Adam."""
    wanted = config.optimizer
    return optim.make_optimizer(
        wanted.name,
        schedule(config),
        wanted.b1,
        wanted.b2,
        wanted.eps,
        wanted.weight_decay,
        wanted.clip_norm,
    )


def mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices`, all of the job by default; the batch must split over it."""
    made = meshes.make_mesh(config.mesh.to_dict(), devices or jax.devices())
    meshes.check_batch(made, "training.batch_size", config.training.batch_size)
    return made


def abstract_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global training batch."""
    data, B = config.data, config.training.batch_size
    video = (B, data.num_frames, data.height, data.width, 3)
    return {
        "video": jax.ShapeDtypeStruct(video, np.uint8),
        "frame_interval": jax.ShapeDtypeStruct((B,), np.float32),
        "source_size": jax.ShapeDtypeStruct((B, 2), np.int32),
        "text_ids": jax.ShapeDtypeStruct((B, data.text_length), np.int32),
        "text_mask": jax.ShapeDtypeStruct((B, data.text_length), np.bool_),
    }


def _blank_batch(config: Config) -> dict[str, jax.Array]:
    """One example of zeros, for initialization."""
    return jax.tree.map(lambda s: jnp.zeros((1,) + s.shape[1:], s.dtype), abstract_batch(config))


def abstract_params(config: Config, made: Denoiser) -> Any:
    """Shapes, dtypes and shardings of the parameters alone, over all devices of the job."""
    shapes_only = jax.eval_shape(lambda: made.init(jax.random.key(0), _blank_batch(config)))
    over = meshes.make_mesh(config.mesh.to_dict(), jax.devices())
    return jax.tree.map(_place, shapes_only, rules.shardings(shapes_only, over))


@dataclasses.dataclass(frozen=True)
class Program:
    """A training run's compiled parts: `init()` -> state, `step(state, batch)` -> state, metrics.

    abstract_state carries the shape, dtype and sharding of every leaf; checkpoints restore to it.
    """

    denoiser: Denoiser
    mesh: Mesh
    abstract_state: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, dict], tuple[TrainState, dict]]


def program(
    config: Config, vocabulary_size: int, devices: Sequence[jax.Device] | None = None
) -> Program:
    """Shapes first, then shardings, then jitted functions, which compile when first called."""
    made_mesh, made = mesh(config, devices), denoiser(config, vocabulary_size)
    chain = optimizer(config)

    def init() -> TrainState:
        return init_state(made, chain, config.seed, _blank_batch(config))

    shapes_only = jax.eval_shape(init)
    placed = rules.shardings(shapes_only, made_mesh)
    step = functools.partial(
        training_step.train_step,
        denoiser=made,
        optimizer=chain,
        objective=objective(config),
        ema_half_life=config.training.ema_half_life,
        ema_ramp=config.training.ema_ramp,
        seed=config.seed,
    )
    return Program(
        denoiser=made,
        mesh=made_mesh,
        abstract_state=jax.tree.map(_place, shapes_only, placed),
        init=jax.jit(init, out_shardings=placed),
        step=jax.jit(
            step,
            in_shardings=(placed, meshes.batch_sharding(made_mesh)),
            out_shardings=(placed, meshes.replicated(made_mesh)),
            donate_argnums=0,
        ),
    )


def _place(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def objective(config: Config) -> training_step.Objective:
    """The numbers of the loss."""
    diffusion = config.diffusion
    return training_step.Objective(
        P_mean=diffusion.P_mean,
        P_std=diffusion.P_std,
        label_dropout=diffusion.label_dropout,
        self_conditioning=diffusion.self_conditioning,
    )


def vocabulary_path(config: Config, workdir: Path) -> Path:
    """The sentencepiece model of a run: the config's, or the one made in the run's folder."""
    return Path(config.data.vocabulary or workdir / "vocabulary.model")
