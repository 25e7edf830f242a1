"""Frames that samples shall keep, read from the files of --init_image and --init_video."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import clips
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.sampling import generate


def of_image(path: str, frames: int, height: int, width: int) -> generate.Given:
    """The picture as frame 0 of one video of `frames`; DataError if it cannot be read."""
    return _given(clips.load_image(path, height, width)[None], [0], frames)


def of_video(
    path: str, known: Sequence[int] | None, frames: int, height: int, width: int, rate: float
) -> generate.Given:
    """The `known` frames of the file's first `frames` at `rate` per second; None: the first half.

    ConfigError for frames or a rate that no sample has, DataError for a file that cannot be read.
    """
    known = list(range((frames + 1) // 2)) if known is None else known
    if min(known) < 0 or max(known) >= frames:
        raise ConfigError(f"--known_frames={list(known)} must be within 0 .. {frames - 1}")
    if not rate:
        raise ConfigError("--init_video needs a --frame_rate above 0")
    clip = clips.decode_clip(
        path, start=0.0, frame_rate=rate, num_frames=max(known) + 1, height=height, width=width
    )
    return _given(clip, known, frames)


def _given(
    first: UInt8[np.ndarray, "K H W 3"], known: Sequence[int], frames: int
) -> generate.Given:
    """`known` frames out of the `first` ones of a video; the others stay black."""
    mask = np.zeros(frames, bool)
    mask[list(known)] = True
    pixels = np.zeros((1, frames, *first.shape[1:]), np.uint8)
    pixels[0, mask] = first[mask[: len(first)]]
    return generate.Given(pixels, mask)
