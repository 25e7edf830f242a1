"""Videos of any length and frame rate from a model of T frames (paper App. C.5)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from snapvideo_jax.diffusion import hierarchy
from snapvideo_jax.sampling import generate


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


def make(
    trained: generate.Trained,
    plan: generate.Plan,
    span: Span,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int,
    given: generate.Given | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    low_res: UInt8[np.ndarray, "N S h w 3"] | None = None,
    **told: Any,
) -> UInt8[np.ndarray, "N S H W 3"]:
    """One video of `span` a prompt; `progress(windows done, of how many)`.

    given: frames that are known from the start, of all S. low_res: what an upsampler enlarges, in
    windows of neighboring frames, each led by the last frame of the one before. told: what
    `generate.generate` is told beside. Window i of a sample draws its noise from stream i of the
    sample's seed, so neither batches nor hosts change it. ConfigError where `hierarchy.windows`
    refuses the span.
    """
    data = trained.config.data
    rates = span.frame_rates if low_res is None else span.frame_rates[-1:]
    windows = hierarchy.windows(span.duration, rates, data.num_frames)
    videos = np.zeros((len(prompts), span.frames, data.height, data.width, 3), np.uint8)
    made = np.zeros(span.frames, bool)
    if given is not None:
        videos[:, given.mask], made[given.mask] = given.video[:, given.mask], True
    for i, window in enumerate(windows):
        frames = np.array(window.frames)
        if not made[frames].all():
            at_rate = dataclasses.replace(plan, frame_rate=window.frame_rate)
            known = _known(videos[:, frames], made[frames])
            small = None if low_res is None else low_res[:, frames]
            asked = prompts, seeds, batch_size
            videos[:, frames] = generate.generate(
                trained, at_rate, *asked, low_res=small, given=known, stream=i, **told
            )
            made[frames] = True
        progress(i + 1, len(windows))
    return videos


def _known(
    video: UInt8[np.ndarray, "N T H W 3"], mask: Bool[np.ndarray, " T"]
) -> generate.Given | None:
    return generate.Given(video, mask) if mask.any() else None
