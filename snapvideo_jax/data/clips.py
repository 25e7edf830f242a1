"""Clips of real videos, and pictures: a file -> uint8 frames at chosen times, all of one size.

Files are not trusted: sizes are checked in the header before anything is decoded, only containers
that cannot refer to other files or to the network are opened, and whatever the decoder raises
becomes a DataError.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from snapvideo_jax.data.choice import TIE, VideoInfo
from snapvideo_jax.errors import DataError, reason

MAX_PIXELS = 64 * 2**20  # of one frame or picture
MAX_FRAMES = 100_000  # of one file: 55 minutes at 30 frames per second
_CONTAINERS = "mov,mp4,matroska,webm,avi"  # playlists are left out: they open other files
_PICTURES = ("PNG", "JPEG", "WEBP")  # Pillow's other formats are less robust


@contextlib.contextmanager
def _as_data_error(path: str | Path | io.BytesIO) -> Iterator[None]:
    """Turns whatever a decoder raises for an unreadable or strange file into one DataError."""
    try:
        yield
    except DataError:
        raise
    # FFmpegError is an OSError or ValueError for most codes, but not for all. SyntaxError is
    # Pillow's for broken metadata.
    except (
        FFmpegError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        detail = reason(error)
        raise DataError(f"{path}: cannot be read: {detail or type(error).__name__}") from error


@contextlib.contextmanager
def _open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Yields the container and its first video stream, set to decode in one thread."""
    # FFmpeg never takes an absolute path for a protocol such as "concat:".
    location, options = str(Path(path).absolute()), {"format_whitelist": _CONTAINERS}
    with _as_data_error(path), av.open(location, options=options) as container:
        if not container.streams.video:
            raise DataError(f"{path}: has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DataError(f"{path}: is coded in a way that no installed decoder knows")
        stream.thread_count = 1  # clips are decoded in parallel; more threads cost more CPU
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _frame_rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _duration(container: Any, stream: Any) -> float:
    """Returns seconds: of the stream, else of the file, else by the frames; 0 if none is known."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / 1e6
    return stream.frames / _frame_rate(stream)


def _pixel_aspect(stream: Any) -> float:
    """Returns the width of a pixel over its height; nonsense in the header counts as square."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.25 <= aspect <= 4 else 1.0


def _check_header(path: str | Path, container: Any, stream: Any) -> None:
    """Raises DataError, before decoding, where the header lacks a fact or a size is too large."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise DataError(f"{path}: the header gives no frame size")
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: frames of {width} x {height} pixels are over {MAX_PIXELS} pixels")
    rate = _frame_rate(stream)
    if not (rate > 0 and math.isfinite(rate)):
        raise DataError(f"{path}: the header gives no frame rate")
    duration = _duration(container, stream)
    if duration <= 0:
        raise DataError(f"{path}: the header gives no duration")
    if max(stream.frames, duration * rate) > MAX_FRAMES:
        raise DataError(
            f"{path}: {max(stream.frames, round(duration * rate))} frames are over {MAX_FRAMES};"
            " cut the video into shorter files"
        )


def _quarter_turns(frame: Any) -> int:
    """Returns the counterclockwise quarter turns that bring a decoded frame upright."""
    return round(frame.rotation / 90) % 4


def probe(path: str | Path) -> VideoInfo:
    """Returns duration, frame rate and displayed size of a video.

    Sizes are checked in the header; then one frame is decoded, since it carries the rotation.

    Raises:
      DataError: the file is no readable video, or has over 64 Mi pixels a frame or 100,000 frames.
    """
    with _open_video(path) as (container, stream):
        _check_header(path, container, stream)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise DataError(f"{path}: holds no frame")
        height, width = frame.height, round(frame.width * _pixel_aspect(stream))
        if _quarter_turns(frame) % 2:
            height, width = width, height
        return VideoInfo(
            path=str(path),
            duration=_duration(container, stream),
            frame_rate=_frame_rate(stream),
            height=height,
            width=width,
        )


def _decode_from(container: Any, stream: Any, start: float) -> Iterator[Any]:
    """Yields frames in display order, from one shown at `start` seconds or earlier."""
    origin, interval = stream.start_time or 0, 1 / _frame_rate(stream)
    container.seek(origin + math.floor(start / stream.time_base), stream=stream)
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None or _seconds(first, stream) > start + interval / 2:
        # Some files have no usable index: then all frames are decoded.
        container.seek(origin, stream=stream)
        frames, first = container.decode(stream), None
    if first is not None:
        yield first
    yield from frames


def _seconds(frame: Any, stream: Any) -> float:
    """Returns the display time, counted from the start of the stream."""
    stamp = frame.dts if frame.pts is None else frame.pts
    if stamp is None:
        raise ValueError("a frame has no time")
    return float((stamp - (stream.start_time or 0)) * stream.time_base)


def _frames_at(frames: Iterable[Any], stream: Any, times: Float[np.ndarray, " T"]) -> Iterator[Any]:
    """Yields for each time the last frame that starts less than half a frame interval after it.

    At a constant rate that is the nearest frame, at a variable rate the one on the screen.
    """
    interval = 1 / _frame_rate(stream)
    waiting, shown, until = list(times), None, -math.inf
    for frame in frames:
        seconds = _seconds(frame, stream)
        while waiting and seconds >= waiting[0] + interval / 2 - TIE:
            yield frame if shown is None else shown
            waiting.pop(0)
        if not waiting:
            return
        shown = frame
        until = seconds + 1.5 * max(interval, float((frame.duration or 0) * stream.time_base))
    if shown is None or waiting[-1] > until:
        raise ValueError(f"no frame at {waiting[-1]:.3f} s; the file ends before that")
    yield from [shown] * len(waiting)


def _fit(frame: Any, pixel_aspect: float, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Scales a frame, upright and in proportion, to cover height x width; returns its middle."""
    turns = _quarter_turns(frame)
    rows, columns = (width, height) if turns % 2 else (height, width)
    scale = max(rows / frame.height, columns / (frame.width * pixel_aspect))
    covered_rows = max(rows, round(frame.height * scale))
    covered_columns = max(columns, round(frame.width * pixel_aspect * scale))
    if covered_rows * covered_columns > MAX_PIXELS:
        raise ValueError(f"frames of {frame.width} x {frame.height} are too narrow to crop")
    scaled = frame.reformat(
        width=covered_columns, height=covered_rows, format="rgb24", interpolation="AREA", threads=1
    )
    top, left = (covered_rows - rows) // 2, (covered_columns - columns) // 2
    pixels = scaled.to_ndarray()[top : top + rows, left : left + columns]
    return np.ascontiguousarray(np.rot90(pixels, turns))


def decode_clip(
    path: str | Path, *, start: float, frame_rate: float, num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes the frames of a video at start + k / frame_rate for k < num_frames.

    Each is scaled in proportion, by area averaging, until it covers height x width; then its middle
    is cut out.

    Args:
      path: the file.
      start: seconds.
      frame_rate: frames per second of the clip, not of the file.
      num_frames: T.
      height: H, pixels.
      width: W, pixels.

    Raises:
      DataError: the file cannot be decoded or ends before the clip does.
    """
    times = start + np.arange(num_frames) / frame_rate
    with _open_video(path) as (container, stream):
        _check_header(path, container, stream)
        clip = np.empty((num_frames, height, width, 3), np.uint8)
        last = None
        frames = _frames_at(_decode_from(container, stream, start), stream, times)
        for k, frame in enumerate(frames):
            same = last is not None and frame is last
            aspect = _pixel_aspect(stream)
            clip[k] = clip[k - 1] if same else _fit(frame, aspect, height=height, width=width)
            last = frame
        return clip


class TimedFrame(NamedTuple):
    """One frame of a video.

    Attributes:
      start: seconds.
      until: seconds until which it is shown if no other follows.
      slack: seconds by which it may start after a time at which it is shown.
      pixels: scaled and cut.
    """

    start: float
    until: float
    slack: float
    pixels: UInt8[np.ndarray, "H W 3"]


def decode_all(path: str | Path, height: int, width: int) -> Iterator[TimedFrame]:
    """Yields every frame of a video, scaled and cut as `decode_clip` does.

    Raises:
      DataError: the file cannot be decoded.
    """
    with _open_video(path) as (container, stream):
        _check_header(path, container, stream)
        interval, aspect = 1 / _frame_rate(stream), _pixel_aspect(stream)
        for frame in _decode_from(container, stream, 0.0):
            start = _seconds(frame, stream)
            shown = float((frame.duration or 0) * stream.time_base)
            yield TimedFrame(
                start=start,
                until=start + 1.5 * max(interval, shown),
                slack=interval / 2,
                pixels=_fit(frame, aspect, height=height, width=width),
            )


@contextlib.contextmanager
def _open_image(path: str | Path | io.BytesIO) -> Iterator[Image.Image]:
    """Yields a picture of which only the header was read."""
    with _as_data_error(path), Image.open(path, formats=_PICTURES) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels are over {MAX_PIXELS} pixels"
            )
        yield image


def probe_image(path: str | Path | io.BytesIO) -> tuple[int, int]:
    """Returns height and width of a picture as displayed, in pixels.

    Raises:
      DataError: the file is no readable picture, or over 64 Mi pixels.
    """
    with _open_image(path) as image:
        on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if on_its_side else (image.height, image.width)


def load_image(
    path: str | Path | io.BytesIO, height: int, width: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the middle of a picture, upright, scaled in proportion to cover height x width.

    Args:
      path: the file, or its content.
      height: H, pixels.
      width: W, pixels.

    Raises:
      DataError: the file is no readable picture, or over 64 Mi pixels.
    """
    with _open_image(path) as image:
        side = 2 * max(height, width)
        image.draft("RGB", (side, side))  # JPEG decodes small at once
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        # Hamming averages over areas, as the scaling of frames does, and enlarges smoothly.
        fitted = ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.HAMMING)
        return np.array(fitted)
