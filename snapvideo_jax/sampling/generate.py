"""Prompts -> videos: batches of requests through the sampler of one trained model."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32, Shaped, UInt8

from snapvideo_jax import build
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.generator import KnownFrames, Request, SamplerSettings
from snapvideo_jax.parallel import batches
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.sampling.trained import Trained

REPORTS = 16  # parts of a sampler's calls, about; after each, progress is reported

Progress = Callable[[int, int], None]  # (how many are done, of how many)


def silent(done: int, of: int) -> None:
    """Reports nothing."""


def request(
    prompts: Sequence[str],
    text: build.Text,
    frame_interval: float,
    source_size: tuple[int, int],
    negative: str | None = None,
) -> dict[str, Any]:
    """Returns what the network reads for each prompt, as the batches of training have it.

    source_size: (height, width) in pixels, 0 where unknown. negative: a text to be led away from.
    """
    entries = text.encode(list(prompts)) | {
        "frame_interval": np.full(len(prompts), frame_interval, np.float32),
        "source_size": np.tile(np.array(source_size, np.int32), (len(prompts), 1)),
    }
    if negative is not None:
        entries["negative"] = text.encode([negative] * len(prompts))
    return entries


def generate(
    trained: Trained,
    settings: SamplerSettings,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    *,
    low_res: UInt8[np.ndarray, "N T h w 3"] | None = None,
    negative: str | None = None,
    source_size: tuple[int, int] | None = None,
    known: KnownFrames | None = None,
    window: int = 0,
    progress: Progress = silent,
    call_progress: Progress = silent,
    reports: int = REPORTS,
) -> UInt8[np.ndarray, "N T H W 3"]:
    """Makes one video a prompt, `batch_size` at a time.

    Batches split over the mesh's batch axes; a `batch_size` that does not is rounded up to one that
    does. In a job of many processes each gives the prompts of its own `batches.shard`, as many as
    every other, and gets their videos.

    Args:
        trained: the model.
        settings: of the sampler.
        prompts: N texts.
        seeds: N numbers, which choose the noise.
        batch_size: videos at a time.
        low_res: what an upsampler enlarges, the N videos of the stage before.
        negative: a text to be led away from.
        source_size: (height, width) in pixels that the network reads, 0 where unknown; None: the
            size of the model's videos.
        known: frames that come out as they went in.
        window: of a long video; each draws other noise from the same seeds.
        progress: called with the videos done, of all.
        call_progress: called on the way through each batch, not at its end. What it raises ends
            the sampling, while the devices still do the part that comes next.
        reports: into how many parts, about, each batch's calls of the denoiser are cut.

    Raises:
        ConfigError: the low resolution is missing, superfluous, or not of the size that the model
            was trained on; or the model samples no stills.
    """
    denoiser, mesh = trained.denoiser, trained.mesh
    _check_low_res(denoiser, low_res)
    if denoiser.image_sigma_in and not settings.frame_rate:
        raise ConfigError("diffusion.image_sigma_in samples no stills; give --frame_rate above 0")
    # The frame rate is an input, so one program serves all.
    program = build.sampler_program(denoiser, mesh, dataclasses.replace(settings, frame_rate=0.0))
    batch_size = -(-batch_size // batches.shard(mesh).rows) * batches.shard(mesh).rows
    requests = _requests(
        prompts,
        seeds,
        batch_size,
        text=trained.text,
        frame_interval=settings.frame_interval,
        source_size=source_size or denoiser.video_shape[1:],
        negative=negative,
        low_res=low_res,
        known=known,
        window=window,
    )
    N, videos = program.num_calls, []
    for done, local in zip(range(0, len(prompts), batch_size), requests, strict=True):
        batch, batch_seeds = global_batch(local, mesh)
        state, finished = program.start(batch, batch_seeds), None
        for first, last in _parts(N, reports):
            state, reached = program.advance(
                trained.params, batch, batch_seeds, state, np.int32(first), np.int32(last)
            )
            # The devices go on with a part while the host waits for the one before.
            if finished is not None:
                call_progress(int(finished), N)
            finished = reached
        videos.append(local_rows(program.finish(state))[: len(prompts) - done])
        progress(min(done + batch_size, len(prompts)), len(prompts))
    return np.concatenate(videos)


def _requests(
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    *,
    low_res: UInt8[np.ndarray, "N T h w 3"] | None,
    known: KnownFrames | None,
    window: int,
    **options: Any,
) -> Iterator[tuple[Request, Int32[np.ndarray, " B"]]]:
    """Yields the request and the seeds of one batch after the other.

    The last batch is filled up with repetitions of the last prompt. options: of `request`.
    """
    for done in range(0, len(prompts), batch_size):
        rows = [min(done + i, len(prompts) - 1) for i in range(batch_size)]
        batch = request([prompts[row] for row in rows], **options)
        batch["window"] = np.full(batch_size, window, np.int32)
        if low_res is not None:
            batch["low_res"] = low_res[rows]
        if known is not None:
            shape = (len(prompts), *known.video.shape[1:])
            batch["known"] = np.broadcast_to(known.video, shape)[rows]
            batch["known_mask"] = np.tile(known.mask, (batch_size, 1))
        yield batch, np.array([seeds[row] for row in rows], np.int32)


def _parts(num_calls: int, reports: int) -> list[tuple[int, int]]:
    """Cuts the calls 0 .. `num_calls` - 1 into about `reports` ranges (first, last)."""
    length = -(-num_calls // reports)
    return [(first, min(first + length, num_calls)) for first in range(0, num_calls, length)]


def global_batch(local: Any, mesh: Mesh) -> Any:
    """Joins this process's rows with those of the others: a tree of global arrays on `mesh`."""
    ways, rows = meshes.ways(mesh, meshes.BATCH_AXES), batches.shard(mesh).rows

    def whole(x: Shaped[np.ndarray, "b ..."]) -> jax.ShapeDtypeStruct:
        shape = (len(x) // rows * ways, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=meshes.batch_sharding(mesh))

    return batches.join(jax.tree.map(whole, local), local)


def local_rows(batch: Shaped[Array, "B ..."]) -> Shaped[np.ndarray, "b ..."]:
    """Returns this process's rows in order; a part that several devices hold counts once."""
    parts = {shard.index[0].start or 0: shard.data for shard in batch.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _check_low_res(denoiser: Denoiser, low_res: UInt8[np.ndarray, "N T h w 3"] | None) -> None:
    """Raises ConfigError where videos of the stage before are missing, superfluous or misfits."""
    if denoiser.low_res_size is None and low_res is None:
        return
    if denoiser.low_res_size is None or low_res is None:
        upsampler = "an upsampler: it needs a first stage's videos"
        kind = "a first stage" if denoiser.low_res_size is None else upsampler
        raise ConfigError(
            f"this checkpoint is {kind}; use --checkpoint=STAGE1 --upsampler=UPSAMPLER"
        )
    expected = (denoiser.video_shape[0], *denoiser.low_res_size)
    if low_res.shape[1:4] != expected:
        raise ConfigError(
            f"the upsampler enlarges videos of {expected} (frames, height, width), and the first "
            f"stage makes {low_res.shape[1:4]}"
        )
