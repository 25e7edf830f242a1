"""Which clip of a video training sees, and which part of its frames: nothing here decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from snapvideo_jax.data import order
from snapvideo_jax.errors import DataError

TIE = 1e-6  # seconds: halfway between two frames the earlier one is shown, however it rounds
_RATE_SLACK = 1.01  # a 29.97 Hz file serves 30 frames per second


Size = tuple[int, int]  # H, W of a source
Aspect = Literal["crop", "pad"]


class Framing(NamedTuple):
    """How frames of any shape become frames of one shape, in proportion.

    Attributes:
      aspect: "crop" scales them to cover the shape and cuts; "pad" scales them to lie inside it,
        in the middle of black.
      crop: where the cut lies, from 0 (top, left) to 1 (bottom, right); None: in the middle.
      flip: whether left and right change places at last.
    """

    aspect: Aspect = "crop"
    crop: tuple[float, float] | None = None
    flip: bool = False


MIDDLE = Framing()
# (start in seconds, frames per second, T, framing) -> the frames of a clip, not flipped yet
Decode = Callable[[float, float, int, Framing], UInt8[np.ndarray, "T H W 3"]]


@dataclass(frozen=True)
class ClipSpec:
    """The clips that training draws: T frames of H x W at one of the frame rates (1/s).

    aspect: as in `Framing`. random_crop: cuts lie anywhere. random_flip: half of the clips flip.
    """

    num_frames: int
    height: int
    width: int
    frame_rates: Sequence[float]
    aspect: Aspect = "crop"
    random_crop: bool = False
    random_flip: bool = False


class VideoInfo(NamedTuple):
    """What a video holds.

    Attributes:
      path: the file, for messages.
      duration: seconds from the first frame to the end of the last.
      frame_rate: average frames per second.
      height: pixels as displayed, after rotation.
      width: pixels as displayed, after rotation and with non-square pixels made square.
    """

    path: str
    duration: float
    frame_rate: float
    height: int
    width: int


class Clip(NamedTuple):
    """Frames, seconds between them (0: a still), what they are from, and which part of it.

    start: seconds. framing: of what was decoded for the clip.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    interval: float
    source: VideoInfo
    start: float
    framing: Framing = MIDDLE

    @property
    def size(self) -> Size:
        """H, W of the source, pixels."""
        return self.source.height, self.source.width


def draw_framing(spec: ClipSpec, seed: int, g: int) -> Framing:
    """Draws where the frames of sample g are cut, and whether they flip, as far as `spec` asks."""
    if not (spec.random_crop or spec.random_flip):
        return Framing(spec.aspect)
    row, column, side = order.generator(seed, g, "framing").random(3).tolist()
    crop = (row, column) if spec.random_crop else None
    return Framing(spec.aspect, crop, flip=spec.random_flip and side < 0.5)


def flipped(frames: UInt8[np.ndarray, "T H W 3"], framing: Framing) -> UInt8[np.ndarray, "T H W 3"]:
    """Returns frames whose left and right change places where the framing says so."""
    return np.ascontiguousarray(frames[:, :, ::-1]) if framing.flip else frames


def draw_clip(
    info: VideoInfo, spec: ClipSpec, rng: np.random.Generator, decode: Decode, framing: Framing
) -> Clip:
    """Draws a clip of the video that `info` describes and `decode` reads."""
    start, rate = choose_clip(
        info, num_frames=spec.num_frames, frame_rates=spec.frame_rates, rng=rng
    )
    frames = flipped(decode(start, rate, spec.num_frames, framing), framing)
    return Clip(frames, interval=1 / rate, source=info, start=start, framing=framing)


def draw_still(
    info: VideoInfo, spec: ClipSpec, rng: np.random.Generator, decode: Decode, framing: Framing
) -> Clip:
    """Draws one frame of a video: a clip of it alone, without an interval."""
    one_frame = replace(spec, num_frames=1, frame_rates=(info.frame_rate,))
    return draw_clip(info, one_frame, rng, decode, framing)._replace(interval=0.0)


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
