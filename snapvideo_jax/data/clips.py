"""Clips of real videos, and pictures: a file -> uint8 frames at chosen times, all of one size.

Files are not trusted: sizes are checked in the header before anything is decoded, only containers
that cannot refer to other files or to the network are opened, and whatever the decoder raises
becomes a DataError.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from snapvideo_jax.data import timeline
from snapvideo_jax.data.choice import MIDDLE, TIE, Framing, VideoInfo
from snapvideo_jax.errors import DataError
from snapvideo_jax.files import containers, frames
from snapvideo_jax.files.containers import Place, Video
from snapvideo_jax.files.tar import Member

MAX_PIXELS = containers.MAX_PIXELS  # of one frame or picture
MAX_FRAMES = 100_000  # of one file: 55 minutes at 30 frames per second
_PICTURES = ("PNG", "JPEG", "WEBP")  # Pillow's other formats are less robust


def _pixel_aspect(stream: Any) -> float:
    """Returns the width of a pixel over its height; nonsense in the header counts as square."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.25 <= aspect <= 4 else 1.0


def _check_header(path: Place, video: Video) -> None:
    """Raises DataError, before decoding, where the header names no size or too large a one."""
    stream = video.stream
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise DataError(f"{path}: the header gives no frame size")
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: frames of {width} x {height} pixels are over {MAX_PIXELS} pixels")
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    rate = float(stream.average_rate or 0)
    count = stream.frames or round(seconds * rate if rate <= timeline.MAX_RATE else 0)
    _check_count(path, count)


def _check_count(path: Place, count: int) -> None:
    if count > MAX_FRAMES:
        raise DataError(
            f"{path}: {count} frames are over {MAX_FRAMES}; cut the video into shorter files"
        )


def probe(path: Place) -> VideoInfo:
    """Returns duration, frame rate and displayed size of a video.

    Sizes are checked in the header. Then the first frame is decoded, since it carries the rotation,
    and where a header names no length of the picture the last packets are read.

    Raises:
      DataError: the file is no readable video, or has over 64 Mi pixels a frame or 100,000 frames.
    """
    with containers.open_video(path) as video:
        _check_header(path, video)
        line = timeline.read_timeline(video, MAX_FRAMES)
        last = timeline.last_time(video, line, MAX_FRAMES)
        _check_count(path, round(last / line.interval) + 1)
        _, frame = next(timeline.timed_frames(video, line), (0.0, None))
        if frame is None:
            raise DataError(f"{path}: holds no frame that can be decoded")
        height, width = frame.height, round(frame.width * _pixel_aspect(video.stream))
        if frames.orientation(frame).transpose:
            height, width = width, height
        return VideoInfo(
            path=str(path),
            duration=last + line.interval,
            frame_rate=1 / line.interval,
            height=height,
            width=width,
        )


def _frames_at(
    shown_frames: Iterable[tuple[float, Any]],
    line: timeline.Timeline,
    times: Float[np.ndarray, " T"],
) -> Iterator[Any]:
    """Yields for each time the last frame that starts less than `line.slack` after it.

    At a constant rate that is the nearest frame, at a variable rate the one on the screen.
    """
    waiting, shown, until = list(times), None, -math.inf
    for seconds, frame in shown_frames:
        while waiting and seconds >= waiting[0] + line.slack - TIE:
            yield frame if shown is None else shown
            waiting.pop(0)
        if not waiting:
            return
        shown = frame
        until = seconds + _shown_for(frame, line)
    if shown is None or waiting[-1] > until:
        raise ValueError(f"no frame at {waiting[-1]:.3f} s; the file ends before that")
    yield from [shown] * len(waiting)


class _Fitter:
    """Scales frames, upright and in proportion, and cuts or pads them to height x width."""

    def __init__(self, pixel_aspect: float, height: int, width: int, framing: Framing):
        self._aspect, self._height, self._width = pixel_aspect, height, width
        self._framing, self._scale = framing, frames.Scaler()

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "H W 3"]:
        if frame.is_corrupt:
            raise ValueError("a frame is damaged")
        how = frames.orientation(frame)
        rows, columns = self._height, self._width
        if how.transpose:
            rows, columns = columns, rows
        ratios = rows / frame.height, columns / (frame.width * self._aspect)
        if self._framing.aspect == "pad":
            scaled_rows = min(rows, max(1, round(frame.height * min(ratios))))
            scaled_columns = min(columns, max(1, round(frame.width * self._aspect * min(ratios))))
            scaled = self._scale(frame, scaled_rows, scaled_columns)
            return frames.upright(_padded(scaled, rows, columns), how)
        covered_rows = max(rows, round(frame.height * max(ratios)))
        covered_columns = max(columns, round(frame.width * self._aspect * max(ratios)))
        if covered_rows * covered_columns > MAX_PIXELS:
            raise ValueError(f"frames of {frame.width} x {frame.height} are too narrow to crop")
        scaled = self._scale(frame, covered_rows, covered_columns)
        top, left = _cut(covered_rows - rows, covered_columns - columns, self._framing, how)
        return frames.upright(scaled[top : top + rows, left : left + columns], how)


def _cut(rows: int, columns: int, framing: Framing, how: frames.Orientation) -> tuple[int, int]:
    """Returns how many of the surplus rows and columns of a stored frame lie before the cut."""
    if framing.crop is None:
        return rows // 2, columns // 2
    y, x = framing.crop  # of the frame as displayed
    y, x = 1 - y if how.flip_rows else y, 1 - x if how.flip_columns else x
    y, x = (x, y) if how.transpose else (y, x)
    return min(rows, int(y * (rows + 1))), min(columns, int(x * (columns + 1)))


def _padded(
    pixels: UInt8[np.ndarray, "h w 3"], rows: int, columns: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a frame in the middle of black."""
    padded = np.zeros((rows, columns, 3), np.uint8)
    top, left = (rows - pixels.shape[0]) // 2, (columns - pixels.shape[1]) // 2
    padded[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return padded


def decode_clip(
    path: Place,
    *,
    start: float,
    frame_rate: float,
    num_frames: int,
    height: int,
    width: int,
    framing: Framing = MIDDLE,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes the frames of a video at start + k / frame_rate for k < num_frames.

    Each is scaled in proportion, by area averaging, until it covers height x width; then its middle
    is cut out, or what `framing` says.

    Args:
      path: the file.
      start: seconds.
      frame_rate: frames per second of the clip, not of the file.
      num_frames: T.
      height: H, pixels.
      width: W, pixels.
      framing: how frames of another shape fit; nothing is flipped.

    Raises:
      DataError: the file cannot be decoded or ends before the clip does.
    """
    times = start + np.arange(num_frames) / frame_rate
    with containers.open_video(path) as video:
        _check_header(path, video)
        line = timeline.read_timeline(video, MAX_FRAMES)
        fit = _Fitter(_pixel_aspect(video.stream), height, width, framing)
        try:
            return _read_clip(video, line, times, fit)
        except timeline.BackwardsError:
            if not line.is_sorted:
                raise
            return _read_clip(video, line._replace(is_sorted=False), times, fit)


def _read_clip(
    video: Video, line: timeline.Timeline, times: Float[np.ndarray, " T"], fit: _Fitter
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes the frames on the screen at `times`, each once."""
    shown, clip, last = timeline.timed_frames(video, line, float(times[0])), [], None
    for frame in _frames_at(shown, line, times):
        clip.append(clip[-1] if clip and frame is last else fit(frame))
        last = frame
    return np.stack(clip)


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


def decode_all(
    path: Place, height: int, width: int, framing: Framing = MIDDLE
) -> Iterator[TimedFrame]:
    """Yields every frame of a video, scaled and cut as `decode_clip` does.

    Raises:
      DataError: the file cannot be decoded.
    """
    with containers.open_video(path) as video:
        _check_header(path, video)
        line = timeline.read_timeline(video, MAX_FRAMES)
        fit = _Fitter(_pixel_aspect(video.stream), height, width, framing)
        for seconds, frame in timeline.timed_frames(video, line):
            until = seconds + _shown_for(frame, line)
            yield TimedFrame(seconds, until, line.slack, fit(frame))


def _shown_for(frame: Any, line: timeline.Timeline) -> float:
    """Returns for how many seconds a frame may be shown if no other follows."""
    return 1.5 * max(line.interval, (frame.duration or 0) * line.unit)


@contextlib.contextmanager
def _open_image(path: Place | io.BytesIO) -> Iterator[Image.Image]:
    """Yields a picture of which only the header was read."""
    file = path.open() if isinstance(path, Member) else path
    with containers.as_data_error(path), Image.open(file, formats=_PICTURES) as image:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels are over {MAX_PIXELS} pixels"
            )
        yield image


def probe_image(path: Place | io.BytesIO) -> tuple[int, int]:
    """Returns height and width of a picture as displayed, in pixels.

    Raises:
      DataError: the file is no readable picture, or over 64 Mi pixels.
    """
    with _open_image(path) as image:
        on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if on_its_side else (image.height, image.width)


def load_image(
    path: Place | io.BytesIO, height: int, width: int, framing: Framing = MIDDLE
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a picture, upright, scaled in proportion and cut or padded to height x width.

    What is transparent shows the background, white, whatever color is stored there.

    Args:
      path: the file, or its content.
      height: H, pixels.
      width: W, pixels.
      framing: how a picture of another shape fits; nothing is flipped.

    Raises:
      DataError: the file is no readable picture, or over 64 Mi pixels.
    """
    with _open_image(path) as image:
        side = 2 * max(height, width)
        image.draft("RGB", (side, side))  # JPEG decodes small at once
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else a copy would be made
            image = ImageOps.exif_transpose(image)
        # Hamming averages over areas, as the scaling of frames does, and enlarges smoothly.
        how = {"size": (width, height), "method": Image.Resampling.HAMMING}
        if framing.aspect == "pad":
            return np.array(ImageOps.pad(_opaque(image), **how))
        y, x = framing.crop or (0.5, 0.5)
        return np.array(ImageOps.fit(_opaque(image), **how, centering=(x, y)))


def _opaque(image: Image.Image) -> Image.Image:
    """Returns a picture of any depth as RGB, over the background where it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        clear = image.info.get("transparency")
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        grey = grey if clear is None else np.where(values == clear, frames.BACKGROUND, grey)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, (frames.BACKGROUND,) * 3)
    page.paste(image, mask=image.getchannel("A"))
    return page
