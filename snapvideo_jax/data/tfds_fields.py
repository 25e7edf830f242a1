"""What a record of any build of tensorflow-datasets shows: a video, or a picture, with captions.

Our own records (`packed`) say all there is to know. Of other builds the config names the features:
where the frames or the video file are, where the caption is, and the frame rate.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import UInt8

from snapvideo_jax.data import packed
from snapvideo_jax.data.choice import Decode, Framing, VideoInfo
from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import ConfigError, DataError


class Recording(NamedTuple):
    """One record: what is known of its video, its captions (at least one), and its frames.

    name: of the file that it was made from; "" if that is not known.
    """

    name: str
    info: VideoInfo
    captions: Sequence[str]
    decode: Decode


class Fields(NamedTuple):
    """The features of a build of others.

    Attributes:
      video: frames, a picture, or a video file.
      caption: text, several texts, or a class.
      frame_rate: frames per second, or the feature that has them.
    """

    video: str
    caption: str
    frame_rate: str


Open = Callable[[bytes], Recording]


def is_packed(features: Any) -> bool:
    """Returns whether the features of a build are those of `packed`."""
    return {"video", "captions", "seconds", "until", "unusable"} <= set(features)


def open_packed(features: Any) -> Open:
    """Returns what opens the records of a build of ours; DataError where the file was unusable."""
    form = packed.frame_format(features)
    to_pixels = lambda frame: packed.decompress(frame, form)

    def open_record(record: bytes) -> Recording:
        with _explaining_damage():
            video = packed.parse(record, form)
        if video.unusable:
            raise DataError(video.unusable)
        decode = lambda start, rate, num_frames, framing: packed.decode(
            video, start, rate, num_frames, to_pixels
        )
        return Recording(video.info.path, video.info, video.captions, decode)

    return open_record


@contextlib.contextmanager
def _explaining_damage() -> Iterator[None]:
    try:
        yield
    except (DecodeError, ValueError, LookupError) as error:
        raise DataError("is no record of this build") from error


def holds_pictures(features: Any, fields: Fields) -> bool:
    """Returns whether each record of a build is one picture."""
    import tensorflow_datasets as tfds

    return isinstance(features.get(fields.video), tfds.features.Image)


def open_foreign(features: Any, fields: Fields, height: int, width: int) -> Open:
    """Returns what opens the records of a build that others made.

    Raises:
      ConfigError: a feature that `fields` names is missing or of no use.
    """
    import tensorflow_datasets as tfds

    kinds = tfds.features
    for role in ("video", "caption"):
        name = getattr(fields, role)
        if name not in features:
            raise ConfigError(
                f"data.tfds.{role}={name}: the build has no such feature, but "
                f"{', '.join(sorted(features))}"
            )
    video, caption = features[fields.video], features[fields.caption]
    to_captions = _to_captions(caption, fields.caption)
    scalar = getattr(video, "shape", None) == () and video.np_dtype in (object, np.bytes_)
    if isinstance(video, kinds.Sequence) and isinstance(video.feature, kinds.Image):
        show, rate = _show_frames, _rate(features, fields)
    elif isinstance(video, kinds.Image):
        show, rate = _show_frames, lambda stored: 1.0
    elif isinstance(video, kinds.Text) or scalar:
        show, rate = _show_file, lambda stored: 1.0  # the file knows its own
    else:
        raise ConfigError(
            f"data.tfds.video={fields.video} is {type(video).__name__} {video.shape}; expected "
            "Video, a sequence of Image, Image, or the bytes of a video file"
        )

    def open_record(record: bytes) -> Recording:
        with _explaining_damage():
            stored = packed.entries(record)
            values = stored[fields.video].bytes_list.value
            captions = to_captions(stored[fields.caption])
            frame_rate = rate(stored)
        if not values or frame_rate <= 0:
            raise DataError("holds no frames, or no frame rate")
        return Recording(name="", captions=captions, **show(values, frame_rate, height, width))

    return open_record


def _rate(features: Any, fields: Fields) -> Callable[[Any], float]:
    """Returns what reads frames per second from a record."""
    with contextlib.suppress(ValueError):
        number = float(fields.frame_rate)
        if number > 0:
            return lambda stored: number
    if fields.frame_rate not in features:
        raise ConfigError(
            f"data.tfds.frame_rate={fields.frame_rate}: is neither a number above 0 nor a feature "
            f"of the build, which has {', '.join(sorted(features))}"
        )

    def read(stored: Any) -> float:
        value = stored[fields.frame_rate]
        return float((value.float_list.value or value.int64_list.value)[0])

    return read


def _to_captions(feature: Any, name: str) -> Callable[[Any], list[str]]:
    """Returns what reads the captions of a record."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        words = lambda label: clean_caption(feature.int2str(label).replace("_", " "))
        return lambda stored: [words(label) for label in stored.int64_list.value]
    inner = getattr(feature, "feature", feature)
    if inner.np_dtype not in (object, np.bytes_, np.str_):
        raise ConfigError(
            f"data.tfds.caption={name} is {type(feature).__name__}; expected text or a class"
        )
    decode = lambda text: clean_caption(text.decode("utf-8", "replace"))
    return lambda stored: [decode(text) for text in stored.bytes_list.value] or [""]


def _show_frames(frames: Sequence[bytes], rate: float, height: int, width: int) -> dict[str, Any]:
    seconds = np.arange(len(frames)) / rate
    rows, columns = _size(frames[0])
    info = VideoInfo("it", duration=len(frames) / rate, frame_rate=rate, height=rows, width=columns)
    video = packed.StoredVideo(info, [""], seconds, len(frames) / rate, 0.5 / rate, frames)

    def decode(
        start: float, rate: float, num_frames: int, framing: Framing
    ) -> UInt8[np.ndarray, "T H W 3"]:
        fit = lambda frame: _fit(frame, height, width, framing)
        return packed.decode(video, start, rate, num_frames, fit)

    return {"info": info, "decode": decode}


def _size(frame: bytes) -> tuple[int, int]:
    from snapvideo_jax.data import clips

    try:
        return clips.probe_image(io.BytesIO(frame))
    except DataError as error:
        raise DataError("its first frame cannot be read") from error


def _fit(frame: bytes, height: int, width: int, framing: Framing) -> UInt8[np.ndarray, "H W 3"]:
    from snapvideo_jax.data import clips

    try:
        return clips.load_image(io.BytesIO(frame), height, width, framing)
    except DataError as error:
        raise DataError("one of its frames cannot be read") from error


def _show_file(values: Sequence[bytes], rate: float, height: int, width: int) -> dict[str, Any]:
    from snapvideo_jax.data import clips

    del rate
    with _as_file(values[0]) as path:
        info = clips.probe(path)._replace(path="it")

    def decode(
        start: float, rate: float, num_frames: int, framing: Framing
    ) -> UInt8[np.ndarray, "T H W 3"]:
        with _as_file(values[0]) as path:
            return clips.decode_clip(
                path,
                start=start,
                frame_rate=rate,
                num_frames=num_frames,
                height=height,
                width=width,
                framing=framing,
            )

    return {"info": info, "decode": decode}


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Yields the path of a temporary file, for decoders that read files; names none in errors."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            yield file.name
        except DataError as error:
            raise DataError(str(error).replace(file.name, "its video")) from error
