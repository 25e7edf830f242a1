"""Which clip of a video training sees, by its times alone: nothing here decodes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from snapvideo_jax.errors import DataError

TIE = 1e-6  # seconds: halfway between two frames the earlier one is shown, however it rounds
_RATE_SLACK = 1.01  # a 29.97 Hz file serves 30 frames per second


class VideoInfo(NamedTuple):
    """What the header of a video says.

    Attributes:
      path: the file, for messages.
      duration: seconds.
      frame_rate: average frames per second.
      height: pixels as displayed, after rotation.
      width: pixels as displayed, after rotation and with non-square pixels made square.
    """

    path: str
    duration: float
    frame_rate: float
    height: int
    width: int


def choose_clip(
    info: VideoInfo, num_frames: int, frame_rates: Sequence[float], rng: np.random.Generator
) -> tuple[float, float]:
    """Draws where a clip starts and at which frame rate its frames are taken.

    A rate is usable if the file has that many frames per second and is long enough for the clip.
    Where the drawn rate is not, the highest usable one takes its place.

    Args:
      info: what the file's header says.
      num_frames: T of the clip.
      frame_rates: frames per second, to choose from.
      rng: makes two draws, whatever the outcome.

    Returns:
      The start in seconds, and the frame rate.

    Raises:
      DataError: no rate is usable.
    """
    drawn, position = frame_rates[int(rng.integers(len(frame_rates)))], rng.random()
    slow_enough = [rate for rate in frame_rates if rate <= info.frame_rate * _RATE_SLACK]
    if not slow_enough:
        raise DataError(
            f"{info.path}: {info.frame_rate:.4g} frames per second are below every frame rate"
            f" of the config ({', '.join(f'{rate:g}' for rate in sorted(frame_rates))})"
        )
    # The last frame of the file starts one frame interval before its end.
    room = info.duration - 1 / info.frame_rate + TIE
    usable = [rate for rate in slow_enough if (num_frames - 1) / rate <= room]
    if not usable:
        raise DataError(
            f"{info.path}: {info.duration:.3g} s are too short for {num_frames} frames"
            f" at {max(slow_enough):g} frames per second"
        )
    frame_rate = drawn if drawn in usable else max(usable)
    return position * max(0.0, room - TIE - (num_frames - 1) / frame_rate), frame_rate


def frames_at(
    seconds: Float[np.ndarray, " N"], times: Float[np.ndarray, " T"], slack: float
) -> Int[np.ndarray, " T"]:
    """Returns for each time the last frame that starts less than `slack` after it.

    Args:
      seconds: when each frame of the video starts, in the order of decoding.
      times: of the clip, rising.
      slack: half the seconds from one frame of the video to the next: the nearest frame.
    """
    latest = np.maximum.accumulate(seconds)
    return np.maximum(np.searchsorted(latest, times + slack - TIE) - 1, 0)
