"""Config -> data, modules, optimizer, mesh, compiled step; with checks.py the reader of configs."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from snapvideo_jax.data import pipeline, shapes, sources
from snapvideo_jax.data.embeddings import Embeddings
from snapvideo_jax.data.text import Tokenizer
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.layers import Attend, dot_product_attention
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.models.t5 import T5Encoder
from snapvideo_jax.models.unet import UNet
from snapvideo_jax.parallel import attention, chips, rules
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.training import optim
from snapvideo_jax.training import step as training_step
from snapvideo_jax.training.state import TrainState, init_state

# A locked ml_collections.ConfigDict, whose fields are known only at run time.
Config = Any

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
        spread=drawn.spread,
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


class Text(NamedTuple):
    """How captions enter: encode(captions) -> what batches hold of them.

    vocabulary_size: ids there are; 0 for states. encoder: fingerprint of the one whose states they
    are; "" for ids.
    """

    encode: pipeline.Encode
    vocabulary_size: int
    encoder: str


def text(config: Config, vocabulary: Path) -> Text:
    """The ids of the sentencepiece model `vocabulary`, or stored states. DataError if not there."""
    length = config.data.text_length
    if config.model.text_encoder.source == "stored":
        stored = Embeddings(config.data.text_states)
        stored.check(config.model.text_encoder.channels, length)
        return Text(as_batch("text", stored), 0, stored.encoder)
    tokenizer = Tokenizer(vocabulary)
    ids = as_batch("text_ids", lambda captions: tokenizer(captions, length))
    return Text(ids, tokenizer.vocabulary_size, "")


def as_batch(name: str, encode: Callable[[Sequence[str]], tuple]) -> pipeline.Encode:
    """encode(captions) -> (values, mask), as a part of a batch."""
    return lambda captions: dict(zip((name, "text_mask"), encode(captions), strict=True))


def network(config: Config, attend: Attend = dot_product_attention) -> FIT | UNet:
    """The denoiser's network; ConfigError for sizes that do not fit each other."""
    model = config.model
    common = {
        "video": padded_video(config),
        "conditioning_channels": model.conditioning_channels,
        "dropout": model.dropout,
        "remat": model.remat,
        "dtype": DTYPES[model.dtype],
        "attend": attend,
    }
    if model.name == "unet":
        unet = model.unet
        return UNet(
            channels=unet.channels,
            multipliers=tuple(unet.multipliers),
            residual_blocks=unet.residual_blocks,
            attention_levels=tuple(unet.attention_levels),
            head_channels=unet.head_channels,
            **common,
        )
    fit = model.fit
    return FIT(
        cut=Grouping(fit.patch, tuple(fit.group)),
        patch_channels=fit.patch_channels,
        latents=fit.latents,
        latent_channels=fit.latent_channels,
        blocks=fit.blocks,
        global_layers=fit.global_layers,
        patch_head_channels=fit.patch_head_channels,
        latent_head_channels=fit.latent_head_channels,
        table_std=fit.table_std,
        unroll=fit.unroll,
        **common,
    )


def denoiser(
    config: Config, vocabulary_size: int, attend: Attend = dot_product_attention
) -> Denoiser:
    """Network, text encoder (None where states are stored) and coefficients."""
    text, diffusion = config.model.text_encoder, config.diffusion
    encoder = None
    if text.source == "trained":
        encoder = T5Encoder(
            vocabulary_size=vocabulary_size,
            channels=text.channels,
            heads=text.heads,
            head_channels=text.head_channels,
            hidden=text.hidden,
            layers=text.layers,
            dtype=DTYPES[config.model.dtype],
        )
    return Denoiser(
        network(config, attend),
        encoder,
        diffusion.sigma_data,
        diffusion.sigma_in,
        config.data.pad_rows,
        tuple(config.data.low_res) or None,
        diffusion.image_sigma_in,
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
    made = denoiser(config, vocabulary_size, attention.best(made_mesh))
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
    made = denoiser(config, vocabulary_size, attention.best(made_mesh))

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
