"""Prompts -> videos, from the EMA parameters of a run: one stage, or a stage and its upsampler."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import sampler
from snapvideo_jax.errors import ConfigError, DataError, StorageError
from snapvideo_jax.export import export_folder
from snapvideo_jax.files import video
from snapvideo_jax.generator import Given, Plan, Walk, walk
from snapvideo_jax.parallel import batches, chips, rules
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.sampling import prompt_encoder
from snapvideo_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Trained:
    """What sampling needs of a run."""

    config: Config
    step: int
    denoiser: Denoiser
    text: build.Text
    params: Params  # the EMA

    def lean(self) -> "Trained":
        """For sampling alone, with less memory: gives the parameters to `Denoiser.lean`."""
        params = jax.jit(self.denoiser.lean, donate_argnums=0)(self.params)
        return dataclasses.replace(self, params=params)

    @property
    def mesh(self) -> Mesh:
        """Of the config, over all devices of the job."""
        return meshes.make_mesh(self.config.mesh.to_dict(), jax.devices())


def plan_from(config: Config, **changes: float | None) -> Plan:
    """The config's `sampling` with those `changes` that are not None."""
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(Plan(**config.sampling.to_dict()), **given)


def load(
    workdir: Path,
    step: int | None = None,
    t5: Path | None = None,
    log: Callable[[str], None] = print,
) -> Trained:
    """The EMA of a run's newest checkpoint that verifies (or of `step`), or of an exported folder.

    t5: the encoder's weights, for a model that was trained on stored states; without it only
    captions whose states are stored can be prompts.
    """
    found = {}

    def wanted(meta: dict) -> dict[str, Any]:
        config = found["config"] = on_devices_here(ConfigDict(meta["config"]))
        text = found["text"] = _text(config, workdir, t5, meta)
        made = found["denoiser"] = build.denoiser(config, text.vocabulary_size)
        return {"ema": build.abstract_params(config, made)}

    folder = workdir / "checkpoints"
    if export_folder.is_export(workdir):
        restored = export_folder.load(workdir, wanted)
    elif step is not None:
        restored = checkpoint.restore_step(folder, step, wanted)
    else:
        restored = checkpoint.restore_newest(folder, wanted, log)
    if restored is None:
        raise StorageError(f"{workdir} holds no checkpoint; train one with launch.train first")
    return Trained(step=restored.step, params=restored.state["ema"], **found)


def on_devices_here(config: Config) -> Config:
    """With the run's mesh if it fits the devices at hand; else all of them are one fsdp axis."""
    try:
        meshes.resolve([config.mesh[axis] for axis in meshes.AXES], jax.device_count())
    except ConfigError:
        config.mesh.update(data=1, fsdp=-1, group=1, tensor=1)
    return config


def _text(config: Config, workdir: Path, t5: Path | None, meta: dict) -> build.Text:
    """How prompts enter; DataError if `t5` is not the encoder that the states are from."""
    if config.model.text_encoder.source == "trained" or t5 is None:
        return build.text(config, build.vocabulary_path(config, workdir))
    encoder = prompt_encoder.load(t5, None, config.data.text_length, config.model.dtype)
    if meta.get("text", encoder.fingerprint) != encoder.fingerprint:
        raise DataError(f"{t5} is not the encoder whose states {workdir} was trained on")
    return build.Text(build.as_batch("text", encoder), 0, encoder.fingerprint)


def request(
    prompts: Sequence[str],
    text: build.Text,
    config: Config,
    frame_interval: float,
    negative: str | None = None,
    source_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What the network is told for each prompt, as the batches of training say it.

    negative: a text to be led away from. source_size: (height, width) in pixels, 0 where unknown;
    None: the size of the config's videos.
    """
    size = source_size or (config.data.height, config.data.width)
    asked = text.encode(list(prompts)) | {
        "frame_interval": np.full(len(prompts), frame_interval, np.float32),
        "source_size": np.tile(np.array(size, np.int32), (len(prompts), 1)),
    }
    if negative is not None:
        asked["negative"] = text.encode([negative] * len(prompts))
    return asked


def generate(
    trained: Trained,
    plan: Plan,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
    low_res: UInt8[np.ndarray, "N T h w 3"] | None = None,
    negative: str | None = None,
    source_size: tuple[int, int] | None = None,
    given: Given | None = None,
    stream: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> UInt8[np.ndarray, "N T H W 3"]:
    """One video a prompt, `batch_size` at a time; `progress(videos done, of how many)`.

    Batches split over the mesh's batch axes; a `batch_size` that does not is rounded up to one that
    does. In a job of many processes each gives the prompts of its own `batches.shard`, as many as
    every other, and gets their videos.

    `low_res` is what an upsampler enlarges: the videos of the stage before, one a prompt.
    `negative` and `source_size` are as for `request`. `given`: frames that are known, which come
    out as they went in. `stream`: of each seed, for further videos of the same seeds.
    `tell(evaluations done, of how many)`: on the way through each batch.
    ConfigError if the low resolution is missing, not wanted, or not of the size it was trained on.
    """
    _check_low_res(trained, low_res)
    if trained.denoiser.image_sigma_in and not plan.frame_rate:
        raise ConfigError("diffusion.image_sigma_in samples no stills; give --frame_rate above 0")
    mesh = trained.mesh
    shard = batches.shard(mesh)
    batch_size = -(-batch_size // shard.rows) * shard.rows
    examples = batch_size // shard.rows * meshes.ways(mesh, meshes.BATCH_AXES)
    frameless = dataclasses.replace(plan, frame_rate=0.0)  # one program for all frame rates
    run, split = _on_mesh(trained.denoiser, frameless, mesh), meshes.batch_sharding(mesh)
    videos = []
    for start in range(0, len(prompts), batch_size):
        rows = [min(start + i, len(prompts) - 1) for i in range(batch_size)]
        asked = request(
            [prompts[row] for row in rows],
            trained.text,
            trained.config,
            plan.frame_interval,
            negative,
            source_size,
        )
        asked["stream"] = np.full(batch_size, stream, np.int32)
        if low_res is not None:
            asked["low_res"] = low_res[rows]
        if given is not None:
            asked["known"] = given.video[rows]
            asked["known_mask"] = np.tile(given.mask, (batch_size, 1))
        numbers = np.array([seeds[row] for row in rows], np.int32)
        mine = asked, numbers
        of_all = lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype, sharding=split)
        asked, numbers = batches.join(jax.tree.map(of_all, mine), mine)
        made = _rows_here(run.videos(trained.params, asked, numbers, tell))
        videos.append(made[: len(prompts) - start])
        progress(min(start + batch_size, len(prompts)), len(prompts))
    return np.concatenate(videos)


@functools.lru_cache(maxsize=8)
def _on_mesh(denoiser: Denoiser, plan: Plan, mesh: Mesh) -> Walk:
    """The sampler, compiled, its batch split over `mesh`, and videos on the way as their groups."""
    made, rows = walk(denoiser, plan), meshes.batch_sharding(mesh)
    state = state_shardings(denoiser, mesh)

    def go(*args: Any) -> sampler.State:
        with rules.activations_on(mesh):
            return made.go(*args)

    how = chips.options(mesh)
    return Walk(
        jax.jit(made.start, out_shardings=state, compiler_options=how),
        jax.jit(go, out_shardings=state, compiler_options=how),
        jax.jit(made.finish, out_shardings=rows, compiler_options=how),
        made.evaluations,
    )


def state_shardings(denoiser: Denoiser, mesh: Mesh) -> sampler.State:
    """Where a sampler's videos and latents lie on the way."""
    video = build.video_sharding(denoiser.network, denoiser.pad_rows, mesh)
    latents = jax.tree.map(lambda x: rules.latents_sharding(mesh), denoiser.no_latents(1))
    places: Any = (video, video, video, latents)
    return sampler.State(*places)


def abstract_request(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Shapes, dtypes and shardings of what `training.batch_size` prompts ask for."""
    data, B = config.data, config.training.batch_size
    asked = {name: s for name, s in build.abstract_batch(config).items() if name != "video"}
    asked["stream"] = jax.ShapeDtypeStruct((B,), np.int32)
    if data.low_res:
        asked["low_res"] = jax.ShapeDtypeStruct((B, data.num_frames, *data.low_res, 3), np.uint8)
    rows = meshes.batch_sharding(mesh)
    return {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows) for n, s in asked.items()}


def _rows_here(batch: UInt8[Array, "B ..."]) -> UInt8[np.ndarray, "b ..."]:
    """This process's part of a batch, in order; a part that several devices hold counts once."""
    parts = {shard.index[0].start or 0: shard.data for shard in batch.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _check_low_res(trained: Trained, low_res: np.ndarray | None) -> None:
    wanted = trained.denoiser.low_res
    if (wanted is None) != (low_res is None):
        kind = (
            "a first stage" if wanted is None else "an upsampler: it needs a first stage's videos"
        )
        raise ConfigError(
            f"this checkpoint is {kind}; use --checkpoint=STAGE1 --upsampler=UPSAMPLER"
        )
    if wanted is None or low_res is None:
        return
    expected = (trained.config.data.num_frames, *wanted)
    if low_res.shape[1:4] != expected:
        raise ConfigError(
            f"the upsampler enlarges videos of {expected} (frames, height, width), and the first "
            f"stage makes {low_res.shape[1:4]}"
        )


def grid(
    config: Config, program: build.Program, text: build.Text, ema: Params
) -> UInt8[np.ndarray, "H W 3"]:
    """A contact sheet of the config's `log.sample_prompts`, for a run to show as it learns."""
    plan, prompts = plan_from(config), list(config.log.sample_prompts)
    trained = Trained(config, 0, program.denoiser, text, ema)
    videos = generate(trained, plan, prompts, range(len(prompts)), len(prompts))
    return np.asarray(video.contact_sheet(list(videos), prompts))
