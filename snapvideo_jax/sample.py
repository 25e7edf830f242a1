"""Prompts -> videos, from the EMA parameters of a run: one stage, or a stage and its upsampler."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict

from snapvideo_jax import build, embed, export, video_io
from snapvideo_jax.build import Config
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, guidance, sampler, sigmas
from snapvideo_jax.errors import ConfigError, DataError, StorageError
from snapvideo_jax.models.conditioning import Conditions
from snapvideo_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Trained:
    """What sampling needs of a run."""

    config: Config
    step: int
    denoiser: Denoiser
    text: build.Text
    params: Params  # the EMA


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to sample: steps of Heun's method, guidance weight (0: none), the grid's ends.

    augmentation: level of noise on the low resolution; read by upsamplers alone.
    frame_rate: frames per second that the network is told; 0 asks for a still image.
    """

    steps: int
    guidance: float
    sigma_min: float
    sigma_max: float
    rho: float
    augmentation: float
    frame_rate: float

    @property
    def frame_interval(self) -> float:
        """Seconds between frames; 0 for an image."""
        return 1 / self.frame_rate if self.frame_rate else 0.0


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
        config = found["config"] = ConfigDict(meta["config"])
        text = found["text"] = _text(config, workdir, t5, meta)
        made = found["denoiser"] = build.denoiser(config, text.vocabulary_size)
        return {"ema": build.abstract_params(config, made)}

    folder = workdir / "checkpoints"
    if export.is_export(workdir):
        restored = export.load(workdir, wanted)
    elif step is not None:
        restored = checkpoint.restore_step(folder, step, wanted)
    else:
        restored = checkpoint.restore_newest(folder, wanted, log)
    if restored is None:
        raise StorageError(f"{workdir} holds no checkpoint; train one with launch.train first")
    return Trained(step=restored.step, params=restored.state["ema"], **found)


def _text(config: Config, workdir: Path, t5: Path | None, meta: dict) -> build.Text:
    """How prompts enter; DataError if `t5` is not the encoder that the states are from."""
    if config.model.text_encoder.source == "trained" or t5 is None:
        return build.text(config, build.vocabulary_path(config, workdir))
    encoder = embed.load(t5, None, config.data.text_length, config.model.dtype)
    if meta.get("text", encoder.fingerprint) != encoder.fingerprint:
        raise DataError(f"{t5} is not the encoder whose states {workdir} was trained on")
    return build.Text(build.as_batch("text", encoder), 0, encoder.fingerprint)


@functools.lru_cache(maxsize=8)
def compiled(denoiser: Denoiser, plan: Plan) -> Callable[..., UInt8[Array, "B T H W 3"]]:
    """A jitted (params, request, seeds) -> videos. One loop, 2 * plan.steps - 1 evaluations.

    `request` holds what a batch holds beside the video; for an upsampler also low_res, uint8
    [B, T, h, w, 3]. Each sample's noise is a function of its own seed, so the batch around it does
    not change it.
    """
    grid = sigmas.sampling_grid(plan.steps, plan.sigma_min, plan.sigma_max, plan.rho)
    shape = (*denoiser.network.video, 3)

    @jax.jit
    def generate(params: Params, request: dict[str, Array], seeds: Int[Array, " B"]):
        given = denoiser.conditions(params, request)
        if denoiser.low_res is not None:
            given = _noised(denoiser, given, request["low_res"], seeds, plan.augmentation)
        noise = jax.vmap(lambda s: sigmas.initial_noise(jax.random.key(s), shape, plan.sigma_max))
        denoise = guidance.classifier_free(
            functools.partial(denoiser.D, params), given, given.drop_text(False), plan.guidance
        )
        latents = denoiser.no_latents(len(seeds))
        return denoiser.decode(
            sampler.heun(denoise, noise(seeds), grid, denoiser.sigma_in, latents)
        )

    return generate


def _noised(
    denoiser: Denoiser, given: Conditions, low_res: Array, seeds: Array, level: float
) -> Conditions:
    """An upsampler's conditions; the noise on the low resolution is the seed's second stream."""
    x = edm.from_pixels(low_res)
    draw = lambda s: jax.random.normal(jax.random.fold_in(jax.random.key(s), 1), x.shape[1:])
    levels = jnp.full(len(seeds), level)
    return denoiser.with_low_res(given, x, levels, jax.vmap(draw)(seeds))


def request(
    prompts: Sequence[str], text: build.Text, config: Config, frame_interval: float
) -> dict[str, np.ndarray]:
    """What the network is told for each prompt, as the batches of training say it."""
    size = (config.data.height, config.data.width)
    return text.encode(list(prompts)) | {
        "frame_interval": np.full(len(prompts), frame_interval, np.float32),
        "source_size": np.tile(np.array(size, np.int32), (len(prompts), 1)),
    }


def generate(
    trained: Trained,
    plan: Plan,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
    low_res: UInt8[np.ndarray, "N T h w 3"] | None = None,
) -> UInt8[np.ndarray, "N T H W 3"]:
    """One video a prompt, `batch_size` at a time; `progress(videos done, of how many)`.

    `low_res` is what an upsampler enlarges: the videos of the stage before, one a prompt.
    ConfigError if they are missing, not wanted, or not of the size it was trained on.
    """
    _check_low_res(trained, low_res)
    run = compiled(trained.denoiser, plan)
    videos = []
    for start in range(0, len(prompts), batch_size):
        chunk = slice(start, start + batch_size)
        missing = batch_size - len(prompts[chunk])
        padded = [*prompts[chunk], *[""] * missing]
        asked = request(padded, trained.text, trained.config, plan.frame_interval)
        if low_res is not None:
            rows = ((0, missing), (0, 0), (0, 0), (0, 0), (0, 0))
            asked["low_res"] = np.pad(low_res[chunk], rows)
        numbers = jnp.asarray([*seeds[chunk], *[0] * missing], jnp.int32)
        made = np.asarray(run(trained.params, asked, numbers))
        videos.append(made[: batch_size - missing])
        progress(min(start + batch_size, len(prompts)), len(prompts))
    return np.concatenate(videos)


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
    return np.asarray(video_io.contact_sheet(list(videos), prompts))
