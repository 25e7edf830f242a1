"""Frames that samples keep, read from a picture or a video file."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import clips
from snapvideo_jax.data.choice import MIDDLE, Framing
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.generator import KnownFrames


def from_image(
    path: str, frames: int, height: int, width: int, framing: Framing = MIDDLE
) -> KnownFrames:
    """Reads a picture as frame 0 of one video of `frames`; DataError if it cannot be read."""
    return _known(clips.load_image(path, height, width, framing)[None], [0], frames)


def from_video(
    path: str,
    indices: Sequence[int] | None,
    frames: int,
    height: int,
    width: int,
    frame_rate: float,
    framing: Framing = MIDDLE,
) -> KnownFrames:
    """Reads frames `indices` of a file's first `frames` at `frame_rate`; None: the first half.

    framing: how the file's shape becomes that of the samples; training's.

    Raises:
        ConfigError: frames or a rate that no sample has.
        DataError: a file that cannot be read.
    """
    indices = list(range((frames + 1) // 2)) if indices is None else indices
    if min(indices) < 0 or max(indices) >= frames:
        raise ConfigError(f"--known_frames={list(indices)} must be within 0 .. {frames - 1}")
    if not frame_rate:
        raise ConfigError("--init_video needs a --frame_rate above 0")
    clip = clips.decode_clip(
        path,
        start=0.0,
        frame_rate=frame_rate,
        num_frames=max(indices) + 1,
        height=height,
        width=width,
        framing=framing,
    )
    return _known(clip, indices, frames)


def _known(clip: UInt8[np.ndarray, "K H W 3"], indices: Sequence[int], frames: int) -> KnownFrames:
    """Takes `indices` out of the first frames of a video; the others stay black."""
    mask = np.zeros(frames, bool)
    mask[list(indices)] = True
    pixels = np.zeros((1, frames, *clip.shape[1:]), np.uint8)
    pixels[0, mask] = clip[mask[: len(clip)]]
    return KnownFrames(pixels, mask)
