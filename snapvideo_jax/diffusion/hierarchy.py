"""Long video from a model of T frames: which frames each call knows, which it adds (App. C.5).

The lowest frame rate covers the whole length, each window led by the last frame of the one before;
each higher rate then fills the frames between, led by all frames of the lower ones.
"""

import dataclasses
import math
from collections.abc import Sequence

from snapvideo_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Window:
    """One call of the model, for T frames.

    level: index of its frame rate, 0 the lowest. frames: their indices at the highest frame rate.
    known: of each frame, whether it comes from an earlier window.
    """

    level: int
    frame_rate: float
    frames: tuple[int, ...]
    known: tuple[bool, ...]

    @property
    def new_frames(self) -> tuple[int, ...]:
        """The frames that this window adds to the video."""
        return tuple(f for f, known in zip(self.frames, self.known, strict=True) if not known)


def windows(duration: float, frame_rates: Sequence[float], num_frames: int) -> list[Window]:
    """Returns the windows in order; each frame of the highest rate is new in exactly one.

    duration: seconds, rounded to whole frames of the highest rate. frame_rates: rising, per second.
    num_frames: T. ConfigError if a rate is no multiple of the one before, or if the lowest rate has
    not T frames in that time.
    """
    _check(duration, frame_rates, num_frames)
    total = round(duration * frame_rates[-1])
    known: set[int] = set()
    calls = []
    for level, rate in enumerate(frame_rates):
        at_level = range(0, total, round(frame_rates[-1] / rate))
        for start in _starts(len(at_level), num_frames):
            frames = tuple(at_level[start : start + num_frames])
            window = Window(level, rate, frames, tuple(f in known for f in frames))
            if window.new_frames:
                calls.append(window)
                known.update(frames)
    return calls


def _starts(total: int, num_frames: int) -> list[int]:
    """Returns starts of windows that share one frame each; the last moves back so that it fits."""
    starts = range(0, total - num_frames, num_frames - 1)
    return [*starts, total - num_frames]


def _check(duration: float, frame_rates: Sequence[float], num_frames: int) -> None:
    if num_frames < 2:
        raise ConfigError(f"long video needs a model of at least 2 frames, not {num_frames}")
    if not frame_rates or not all(0 < rate < math.inf for rate in frame_rates):
        raise ConfigError(f"frame_rates must be above 0 and at least one, not {list(frame_rates)}")
    if not 0 < duration < math.inf:
        raise ConfigError(f"duration must be above 0 seconds, not {duration:g}")
    for low, high in zip(frame_rates[:-1], frame_rates[1:], strict=True):
        times = high / low
        if round(times) < 2 or abs(times - round(times)) > 1e-6 * times:
            raise ConfigError(
                f"frame_rates must rise, each a multiple of the one before; {high:g} is no "
                f"multiple of {low:g}"
            )
    step = round(frame_rates[-1] / frame_rates[0])
    if -(-round(duration * frame_rates[-1]) // step) < num_frames:
        raise ConfigError(
            f"duration {duration:g} s is too short: {num_frames} frames at {frame_rates[0]:g} per "
            f"second, the lowest of frame_rates, take {num_frames / frame_rates[0]:g} s"
        )
