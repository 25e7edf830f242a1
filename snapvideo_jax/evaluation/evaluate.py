"""evaluate(): samples what a protocol asks for, measures it beside real videos, returns values.

    stages -> videos, a batch at a time -> features of networks, motion      (job: resumable)
    real videos -> features -> moments, cached by fingerprint                (job: resumable)
    real videos with captions -> denoising loss by noise level               (job: resumable)
    features, moments -> values                                              (first process)

Nothing but one batch of videos, and features, is ever in memory. All processes of a job call
`evaluate` alike, and each measures the videos that it samples, on its own devices.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from snapvideo_jax.data.world import World
from snapvideo_jax.evaluation import job, metrics, moments, noise_levels, oracle, values
from snapvideo_jax.evaluation.choices import digest
from snapvideo_jax.evaluation.extractors import FRECHET
from snapvideo_jax.evaluation.job import Job, Measured
from snapvideo_jax.evaluation.metrics import Extractor
from snapvideo_jax.evaluation.moments import Moments
from snapvideo_jax.evaluation.result import Result
from snapvideo_jax.evaluation.sets import RealSet, Sets
from snapvideo_jax.parallel import batches, hosts
from snapvideo_jax.sampling import output_folder
from snapvideo_jax.sampling.generate import Progress, global_batch, local_rows
from snapvideo_jax.sampling.output_folder import WorkShare
from snapvideo_jax.sampling.stage import Stage, cascade, work_share
from snapvideo_jax.training import leaf_digests

LOSS_VIDEOS = 128  # real ones, on which the loss by noise level is measured
MOTION_VIDEOS = 256  # sampled ones, whose motion is: matching blocks takes seconds a large video

Videos = UInt8[np.ndarray, "B T H W 3"]
ProgressOf = Callable[[str], Progress]  # what is counted -> reports how much of it is done


class Setting(NamedTuple):
    """How an evaluation runs; none of it changes a value.

    folder: of what is measured so far, to be deleted when the result is written. cache: folder of
    statistics of real sets. batch_size: videos a process samples at a time. progress: reports, with
    the time left.
    """

    folder: Path
    cache: Path
    batch_size: int
    progress: ProgressOf


class Evaluation(NamedTuple):
    """The result; of moving shapes also the videos, and which show all that their prompt says.

    seconds: that sampling a video took in the fastest batch; None where there was one batch alone,
    in which programs were compiled.
    """

    result: Result
    videos: UInt8[np.ndarray, "N T H W 3"] | None = None
    right: Sequence[bool] = ()
    seconds: float | None = None


def evaluate(
    stages: Sequence[Stage],
    sets: Sets,
    networks: Mapping[str, Extractor],
    setting: Setting,
    world: World | None = None,
) -> Evaluation | None:
    """Measures a model, of one stage or two, under a protocol; None on all but the first process.

    Args:
        stages: how to sample.
        sets: what is sampled, and what it is compared with.
        networks: name -> features; from `extractors.usable`.
        setting: how to go about it.
        world: of moving shapes, whose captions the oracle reads back; None for other videos.

    Raises:
        ConfigError, DataError, StorageError: one line; what is missing or does not fit.
    """
    choices = _as_json(choices_of(stages, sets, networks))
    model = _as_json(dict(_by_stage(stages, _record)) | {"versions": output_folder.versions()})
    share = work_share(stages)
    num = len(sets.samples.prompts)
    sampling = setting._replace(batch_size=min(setting.batch_size, -(-num // share.count)))
    folder = setting.folder / digest({"choices": choices, "model": model})
    samples = Job(folder / "samples", num, sampling.batch_size, share)
    job.claim(samples, {"choices": choices, "model": model})
    real = real_moments(sets.real, networks, setting, share)
    losses = None
    if sets.real.is_captioned and len(stages) == 1:
        of_model = digest({"model": model, "real": choices["real"]})  # however it is sampled
        losses = _losses(stages[0], sets.real, setting.folder / of_model, setting, share)
    measure = _measure_samples(stages, sets, networks, sampling, keep_videos=world is not None)
    measured = job.run(samples, measure, setting.progress("videos"))

    def finish() -> Evaluation | None:
        if not hosts.is_first():
            return None
        measures = values.of(measured, real, networks)
        if losses is not None:
            pairs = zip(noise_levels.NAMES, losses.T, strict=True)
            measures |= {name: values.mean(column) for name, column in pairs}
        evaluation = Evaluation(Result(choices, model, measures, {}))
        if world is not None:
            interval = stages[0].settings.frame_interval
            videos, prompts = measured["video"], sets.samples.prompts
            evaluation = _read_back(evaluation.result, videos, prompts, world, interval)
        several = samples.rounds > 1
        return evaluation._replace(seconds=measured["seconds"].min() if several else None)

    return hosts.raise_on_all(finish)


def choices_of(
    stages: Sequence[Stage], sets: Sets, networks: Mapping[str, Extractor]
) -> dict[str, Any]:
    """Returns everything that decides the values, beside the model itself."""
    samples, real = sets.samples, sets.real
    return {
        "protocol": sets.protocol,
        "prompts": {"count": len(samples.prompts), "digest": digest({"": samples.prompts})},
        "seed": samples.seed,
        "sampling": dict(_by_stage(stages, lambda stage: vars(stage.settings))),
        "source_size": stages[0].source_size,
        "video": stages[-1].trained.denoiser.video_shape,
        "real": {
            "set": real.name,
            "count": real.count,
            "fingerprint": real.fingerprint,
            "video": real.video_shape,
        },
        "metrics": {
            name: {
                "variant": network.variant,
                "weights_sha256": network.sha256,
                "more_sha256": network.more_sha256,
            }
            for name, network in networks.items()
        },
        "loss": {"levels": noise_levels.LEVELS, "videos": LOSS_VIDEOS},
        "motion": {"videos": MOTION_VIDEOS},
    }


def _by_stage(stages: Sequence[Stage], function: Callable[[Stage], Any]) -> list[tuple[str, Any]]:
    return [(name, function(s)) for name, s in zip(("first", "upsampler"), stages, strict=False)]


def _record(stage: Stage) -> dict[str, Any]:
    """Returns which model a stage is."""
    return {
        "checkpoint": str(Path(stage.folder).absolute()),
        "step": stage.trained.step,
        "parameters": digest(leaf_digests.of(stage.trained.params)),
        "text_encoder": stage.trained.text.encoder,
    }


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns fields as files hold them: without tuples, an infinity as text, which JSON lacks."""
    return json.loads(json.dumps(fields), parse_constant=str)


def _measure_samples(
    stages: Sequence[Stage],
    sets: Sets,
    networks: Mapping[str, Extractor],
    setting: Setting,
    *,
    keep_videos: bool,
) -> job.Measure:
    """Returns what samples a batch of videos and measures it."""
    prompts, seed, frames = sets.samples.prompts, sets.samples.seed, sets.real.video_shape[0]

    def measure(rows: Sequence[int]) -> Measured:
        texts, seeds = [prompts[row] for row in rows], [seed + row for row in rows]
        start = time.perf_counter()
        videos = cascade(stages, texts, seeds, setting.batch_size, setting.progress)[:, :frames]
        seconds = (time.perf_counter() - start) / setting.batch_size
        measured = _features(networks, videos, setting.batch_size)
        measured["seconds"] = np.full(len(videos), seconds)
        if "clip" in networks and networks["clip"].texts is not None:
            measured["clip_text"] = networks["clip"].texts(texts)
        if keep_videos:
            measured["video"] = videos
        return measured | _motions(videos, rows)

    return measure


def _motions(videos: Videos, rows: Sequence[int]) -> Measured:
    """Returns the measures of motion; nan where there is none, and from MOTION_VIDEOS on."""
    measured = {name: np.full(len(videos), np.nan) for name in metrics.MOTIONS}
    counts = np.array(rows) < MOTION_VIDEOS
    if counts.any():
        for name, column in metrics.motions(videos[counts]).items():
            measured[name][counts] = column
    return measured


def _features(networks: Mapping[str, Extractor], videos: Videos, full: int) -> Measured:
    return {name: metrics.by_video(by, videos, full) for name, by in networks.items()}


def real_moments(
    real: RealSet, networks: Mapping[str, Extractor], setting: Setting, share: WorkShare
) -> dict[str, Moments]:
    """Returns the moments of each network's features of the real set, on the first process.

    Those that the cache lacks are measured, and stay there for all later evaluations.
    """
    facts = lambda name: {
        "real": real.fingerprint,
        "network": name,
        "variant": networks[name].variant,
        "weights_sha256": networks[name].sha256,
    }
    paths = {
        name: setting.cache / f"{name}-{digest(facts(name))}.npz"
        for name in networks
        if name in FRECHET
    }
    lacking = hosts.broadcast(lambda: [name for name, path in paths.items() if not path.exists()])
    if lacking:
        chosen = {name: networks[name] for name in lacking}
        folder = setting.cache / digest({name: facts(name) for name in lacking})
        whole = Job(folder, real.count, setting.batch_size, share)
        job.claim(whole, {name: facts(name) for name in lacking})
        measure = lambda rows: _features(chosen, _clips(real, rows), setting.batch_size)
        measured = job.run(whole, measure, setting.progress("real videos"))
        for name, features in measured.items():
            moments.save(paths[name], values.moments_of(features))
        if hosts.is_first():
            shutil.rmtree(folder)
    load = lambda: {name: moments.load(path) for name, path in paths.items()}
    return hosts.raise_on_all(lambda: load() if hosts.is_first() else {})


def _clips(real: RealSet, rows: Sequence[int]) -> Videos:
    """Reads clips, several at a time."""
    with ThreadPoolExecutor() as pool:
        return np.stack([clip for clip, *_ in pool.map(real.example, rows)])


def _losses(
    stage: Stage, real: RealSet, folder: Path, setting: Setting, share: WorkShare
) -> Float[np.ndarray, "N L"] | None:
    """Measures the loss of each noise level on real videos; None on all but the first process."""
    trained, mesh = stage.trained, stage.trained.mesh
    program = noise_levels.program(trained.denoiser, mesh)
    shard = batches.shard(mesh)
    size = -(-setting.batch_size // shard.rows) * shard.rows

    def measure(rows: Sequence[int]) -> Measured:
        filled = [*rows, *[rows[-1]] * (size - len(rows))]
        clips, captions, intervals, sizes = zip(*map(real.example, filled), strict=True)
        entries = trained.text.encode(list(captions)) | {
            "video": np.stack(clips),
            "frame_interval": np.array(intervals, np.float32),
            "source_size": np.array(sizes, np.int32),
        }
        local = entries, np.array(filled, np.int32)
        inputs = global_batch(local, mesh)
        return {"loss": local_rows(program(trained.params, *inputs))[: len(rows)]}

    part = Job(folder, min(LOSS_VIDEOS, real.count), setting.batch_size, share)
    return job.run(part, measure, setting.progress("videos' losses")).get("loss")


def _read_back(
    result: Result,
    videos: Videos,
    prompts: Sequence[str],
    world: World,
    frame_interval: float,
) -> Evaluation:
    """Adds the oracle's scores of videos, the first half of seen and the second of held-out."""
    score = lambda first, last: oracle.score(
        list(videos[first:last]), prompts[first:last], world, [frame_interval] * (last - first)
    )
    n = len(prompts)
    scored = score(0, n // 2) | {"held_out": score(n // 2, n)}
    right = [score(i, i + 1)["all"] == 1 for i in range(n)]
    details = _as_json({"oracle": scored, "chance": oracle.chance(world)})
    both = values.rates(details["oracle"]) | result.values
    result = dataclasses.replace(result, values=both, details=details)
    return Evaluation(result, videos, right)
