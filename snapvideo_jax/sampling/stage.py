"""The stages of a cascade: each is a trained model, and how it is sampled."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.generator import KnownFrames, SamplerSettings
from snapvideo_jax.parallel import batches, chips
from snapvideo_jax.sampling import trained
from snapvideo_jax.sampling.generate import REPORTS, Progress, generate
from snapvideo_jax.sampling.long_video import Span, generate_long
from snapvideo_jax.sampling.output_folder import WorkShare, versions
from snapvideo_jax.sampling.trained import Trained
from snapvideo_jax.units import count_text

Videos = UInt8[np.ndarray, "N T H W 3"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A checkpoint and how to sample it.

    source_size: (height, width) in pixels that the network reads. negative: a text to be led away
    from. span: of a long video. known: frames to keep, of one video, for all samples.
    """

    folder: str
    trained: Trained
    settings: SamplerSettings
    source_size: tuple[int, int]
    negative: str | None = None
    span: Span | None = None
    known: KnownFrames | None = None

    def generator(
        self, num_videos: int, progress: Callable[[str], Progress], reports: int = REPORTS
    ) -> Callable[..., Videos]:
        """Returns (prompts, seeds, batch_size, low_res=...) -> videos, one for each prompt.

        Args:
            num_videos: how many the lines of progress speak of.
            progress: what is counted -> the function that reports how much of it is done. Within a
                batch it is not called at the end.
            reports: of each batch, about.
        """
        within = lambda things: _until_end(progress(things))
        options: dict[str, Any] = {
            "reports": reports,
            "negative": self.negative,
            "source_size": self.source_size,
            "known": self.known,
        }
        videos = count_text(num_videos, "video")
        if self.span is None:
            options["call_progress"] = within(f"denoiser calls of {videos}")
            return functools.partial(generate, self.trained, self.settings, **options)
        options["span"] = self.span
        options["progress"] = within(f"windows of {videos}")
        return functools.partial(generate_long, self.trained, self.settings, **options)

    def record(self) -> dict[str, Any]:
        """Returns what decides the pixels, beside prompt and seed."""
        known = self.known
        return {
            "checkpoint": str(Path(self.folder).absolute()),
            "checkpoint_step": self.trained.step,
            "text_encoder": self.trained.text.encoder,
            **vars(self.settings),
            "source_size": self.source_size,
            "span": self.span and vars(self.span),
            "known_frames": known and np.flatnonzero(known.mask).tolist(),
            "known": known and hashlib.sha256(known.video.tobytes()).hexdigest(),
            "video": self.trained.denoiser.video_shape,
        }


def load(
    folder: str,
    step: int | None = None,
    t5: str | None = None,
    log: Callable[[str], None] = print,
    **changes: Any,
) -> Stage:
    """Loads a stage that is sampled as its config says, but for `changes` of its settings.

    The network reads the size of its own videos as that of their source. The other arguments and
    the errors are those of `trained.load`.
    """
    model = trained.load(Path(folder), step, Path(t5) if t5 else None, log).cast_kernels()
    settings = build.sampler_settings(model.config, **changes)
    return Stage(folder, model, settings, source_size=model.denoiser.video_shape[1:])


def cascade(
    stages: Sequence[Stage],
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    progress: Callable[[str], Progress],
    reports: int = REPORTS,
) -> Videos:
    """Makes a video of each prompt: the first stage draws it, each later one enlarges it.

    progress, reports: as for `Stage.generator`, which is called for one stage after the other.
    """
    videos = None
    for stage in stages:
        generator = stage.generator(len(prompts), progress, reports)
        videos = generator(prompts, seeds, batch_size, low_res=videos)
    assert videos is not None, "there is a first stage"
    return videos


def cascade_in_memory(
    stages: Sequence[Stage],
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    progress: Callable[[str], Progress],
    log: Callable[[str], None],
) -> tuple[Videos, int]:
    """Makes what `cascade` makes, with half the batch whenever the devices' memory is exhausted.

    Returns the videos, and the batch size that fits. In a job of several processes, which need not
    run out of memory alike, nothing is tried again. log: called with a line for each batch size
    that does not fit. Raises ConfigError where not even the smallest does.
    """
    smallest = max(batches.shard(stage.trained.mesh).rows for stage in stages)
    while True:
        try:
            return cascade(stages, prompts, seeds, batch_size, progress), batch_size
        except jax.errors.JaxRuntimeError as error:
            if not chips.exhausted(error) or jax.process_count() > 1:
                raise
        if batch_size <= smallest:
            raise ConfigError(
                f"a batch of {smallest}, the smallest that splits over the devices, is more than "
                "their memory holds; sample on more devices, or on larger ones"
            )
        half = max(batch_size // 2, smallest)
        log(f"the devices' memory does not hold {batch_size} videos at a time; trying {half}")
        batch_size = half


def record(stages: Sequence[Stage], file_format: str) -> dict[str, Any]:
    """Returns what samples.json says beside prompts and seeds."""
    first, *more = stages
    return {
        **first.record(),
        "negative_prompt": first.negative,
        "format": file_format,
        "upsampler": more[0].record() if more else None,
        "versions": versions(),
    }


def unseen(first: Stage, prompts: Sequence[str]) -> Iterator[str]:
    """Yields a line for each thing that a model is asked for and was never shown."""
    text, shown = first.trained.text, build.frame_rates(first.trained.config)
    if words := text.unknown(prompts):
        yield f"no caption of training has the word {' or '.join(words)}"
    rates = first.span.frame_rates if first.span else (first.settings.frame_rate,)
    if others := [f"{rate:g}" for rate in rates if rate and rate not in shown]:
        yield (
            f"training shows {', '.join(f'{rate:g}' for rate in shown)} frames per second, and "
            f"not {', '.join(others)}"
        )


def _until_end(report: Progress) -> Progress:
    return lambda done, of: report(done, of) if done < of else None


def work_share(stages: Sequence[Stage]) -> WorkShare:
    """Returns this process's share of the videos that the stages make.

    Raises ConfigError where the stages split examples over processes differently.
    """
    # Stages may take other numbers of rows at a time; which process makes which must be the same.
    shards = {batches.shard(stage.trained.mesh)._replace(rows=0) for stage in stages}
    if len(shards) > 1:
        raise ConfigError(
            "the two stages split videos over hosts in different ways; train them with the same "
            "mesh.group and mesh.tensor, or sample on hosts that hold whole videos"
        )
    shard = shards.pop()
    return WorkShare(shard.index, shard.count, writes=shard.owner)
