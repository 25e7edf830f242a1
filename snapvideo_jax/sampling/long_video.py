"""Videos of any length and frame rate from a model of T frames (paper App. C.5)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.diffusion import hierarchy
from snapvideo_jax.generator import KnownFrames, SamplerSettings
from snapvideo_jax.sampling.generate import Progress, generate, silent
from snapvideo_jax.sampling.trained import Trained


@dataclasses.dataclass(frozen=True)
class Span:
    """How long, in seconds, and at which frame rates the levels are made; the last is the video's.

    Rates rise, each a multiple of the one before.
    """

    duration: float
    frame_rates: tuple[float, ...]

    @property
    def frames(self) -> int:
        """How many there are at the highest rate."""
        return round(self.duration * self.frame_rates[-1])


def generate_long(
    trained: Trained,
    settings: SamplerSettings,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    *,
    span: Span,
    low_res: UInt8[np.ndarray, "N S h w 3"] | None = None,
    known: KnownFrames | None = None,
    progress: Progress = silent,
    **options: Any,
) -> UInt8[np.ndarray, "N S H W 3"]:
    """Makes one video of `span` a prompt, window by window.

    The noise of window i is a function of the sample's seed and i, so neither batches nor hosts
    change it.

    Arguments that are not listed are those of `generate`.

    Args:
        span: how long, and at which frame rates.
        low_res: what an upsampler enlarges, in windows of neighboring frames, each led by the last
            frame of the one before.
        known: of all S frames, those that are known from the start.
        progress: called with the windows done, of all.
        options: further arguments of `generate`.

    Raises:
        ConfigError: where `hierarchy.windows` refuses the span.
    """
    num_frames, height, width = trained.denoiser.video_shape
    rates = span.frame_rates if low_res is None else span.frame_rates[-1:]
    windows = hierarchy.windows(span.duration, rates, num_frames)
    videos = np.zeros((len(prompts), span.frames, height, width, 3), np.uint8)
    done = np.zeros(span.frames, bool)
    if known is not None:
        videos[:, known.mask], done[known.mask] = known.video[:, known.mask], True
    for i, window in enumerate(windows):
        frames = np.array(window.frames)
        if not done[frames].all():
            before = KnownFrames(videos[:, frames], done[frames])
            videos[:, frames] = generate(
                trained,
                dataclasses.replace(settings, frame_rate=window.frame_rate),
                prompts,
                seeds,
                batch_size,
                low_res=None if low_res is None else low_res[:, frames],
                known=before if before.mask.any() else None,
                window=i,
                **options,
            )
            done[frames] = True
        progress(i + 1, len(windows))
    return videos
