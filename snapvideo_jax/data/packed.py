"""Videos as records that need no video decoder: every frame at training size, by itself.

A record is a tf.train.Example, as tensorflow-datasets stores it, so a folder of them is one of its
data sets. All frames of a video are there with the seconds at which they start: any clip, at any
frame rate, is a few of them. Files that cannot be decoded keep their places, with the reason.
"""

import io
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from snapvideo_jax.data.choice import VideoInfo, frames_at
from snapvideo_jax.errors import DataError, reason

VIDEOS, PICTURES = "train", "images"  # the splits of a build
HEADER = "pack.json"  # what was packed, and how, with a checksum for each shard
CAPTIONS = "captions.jsonl"  # of all records, so that nobody has to read the records for them
ENCODINGS = ("jpeg", "png", "raw")
MAX_BYTES = 256 * 2**20  # of one record: every clip that is drawn reads all of it

Frame = Any  # bytes, or an array of them: a JPEG or PNG file, or pixels
_BASELINE = b"\xff\xc0\x00\x11\x08"  # in a JPEG of 8 bits and 3 colors, before its size


class FrameFormat(NamedTuple):
    """How the frames of a build are stored: one of ENCODINGS, at height x width pixels."""

    encoding: str
    height: int
    width: int


class StoredVideo(NamedTuple):
    """A video, or a picture as a video of one frame.

    Attributes:
      info: its name, length, rate and size before it was scaled.
      captions: at least one; an empty one means no text.
      seconds: when each frame starts.
      until: when the last frame ends, seconds.
      slack: seconds by which a frame may start after a time at which it is shown.
      frames: JPEG or PNG files, or the bytes of pixels.
      unusable: why there are no frames, or "".
    """

    info: VideoInfo
    captions: Sequence[str]
    seconds: Float[np.ndarray, " N"]
    until: float
    slack: float
    frames: Sequence[Frame]
    unusable: str = ""


def compress(pixels: UInt8[np.ndarray, "H W 3"], encoding: str, quality: int) -> bytes:
    """Returns a frame as "jpeg" with all of its colors, or without loss as "png" or "raw"."""
    if encoding == "raw":
        return pixels.tobytes()
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    if encoding == "png":
        picture.save(content, "PNG", compress_level=1)  # at small sizes no larger than at 9
    else:
        picture.save(content, "JPEG", quality=quality, subsampling=0)
    return content.getvalue()


def decompress(frame: Frame, form: FrameFormat) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of a frame; raises DataError where it is not whole or of another size."""
    shape, size = (form.height, form.width, 3), (form.width, form.height)
    try:
        if form.encoding == "raw":
            return np.frombuffer(frame, np.uint8).reshape(shape)
        if form.encoding == "jpeg":  # the decoder alone: to look at the file first takes as long
            if _BASELINE + struct.pack(">HH", form.height, form.width) not in frame:
                raise ValueError(f"is no JPEG of {form.height} x {form.width} pixels")
            picture = Image.frombytes("RGB", size, frame, "jpeg", "RGB", "", 1, 0)
            return np.frombuffer(picture.tobytes(), np.uint8).reshape(shape)
        with Image.open(io.BytesIO(frame), formats=("PNG",)) as picture:
            return np.asarray(picture.convert("RGB")).reshape(shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"a stored frame cannot be read: {reason(error)}") from error


def decode(
    video: StoredVideo,
    start: float,
    rate: float,
    num_frames: int,
    to_pixels: Callable[[Frame], UInt8[np.ndarray, "H W 3"]],
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes the frames at start + k / rate for k < num_frames, as `clips.decode_clip` does.

    Raises:
      DataError: the video ends before the clip does, or a frame is damaged.
    """
    times = start + np.arange(num_frames) / rate
    if not video.frames or times[-1] > video.until:
        raise DataError(f"{video.info.path}: no frame at {times[-1]:.3f} s; it ends before that")
    chosen = frames_at(video.seconds, times, video.slack)
    pixels = {k: to_pixels(video.frames[k]) for k in set(chosen.tolist())}
    return np.stack([pixels[k] for k in chosen.tolist()])


def features(form: FrameFormat) -> Any:
    """Returns the features of a record, for tensorflow-datasets."""
    import tensorflow_datasets as tfds

    exact = lambda shape: tfds.features.Tensor(  # a float feature would be rounded to 32 bits
        shape=shape, dtype=np.float64, encoding=tfds.features.Encoding.BYTES
    )
    shape = form.height, form.width, 3
    if form.encoding == "raw":
        frames = tfds.features.Tensor(
            shape=(None, *shape), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
    else:
        frame = tfds.features.Image(shape=shape, encoding_format=form.encoding)
        frames = tfds.features.Sequence(frame)
    return tfds.features.FeaturesDict(
        {
            "video": frames,
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "name": tfds.features.Text(doc="where it came from"),
            "seconds": tfds.features.Tensor(
                shape=(None,),
                dtype=np.float64,
                encoding=tfds.features.Encoding.BYTES,
                doc="when each frame starts",
            ),
            "until": exact(()),
            "slack": exact(()),
            "duration": exact(()),
            "frame_rate": exact(()),
            "source_size": tfds.features.Tensor(shape=(2,), dtype=np.int64),
            "unusable": tfds.features.Text(doc="why there are no frames"),
        }
    )


def frame_format(layout: Any) -> FrameFormat:
    """Returns how the build of these features stores frames: the inverse of `features`."""
    video = layout["video"]
    if hasattr(video, "feature"):
        height, width, _ = video.feature.shape
        return FrameFormat(video.feature.encoding_format, height, width)
    _, height, width, _ = video.shape
    return FrameFormat("raw", height, width)


def serialize(video: StoredVideo, layout: Any) -> bytes:
    """Returns the record of a video whose frames are as `features` described them in `layout`.

    The same video is the same bytes in every process.
    """
    form = frame_format(layout)
    if form.encoding == "raw":
        pixels = np.frombuffer(b"".join(video.frames), np.uint8)
        frames: Any = pixels.reshape(-1, form.height, form.width, 3)
    else:
        frames = [io.BytesIO(frame) for frame in video.frames]
    content = layout.serialize_example(
        {
            "video": frames,
            "captions": video.captions,
            "name": video.info.path,
            "seconds": video.seconds,
            "until": video.until,
            "slack": video.slack,
            "duration": video.info.duration,
            "frame_rate": video.info.frame_rate,
            "source_size": [video.info.height, video.info.width],
            "unusable": video.unusable,
        }
    )
    return _example(content).SerializeToString(deterministic=True)


def _example(record: bytes) -> Any:
    from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

    return proto.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]


def entries(record: bytes) -> Any:
    """Returns the features of a tf.train.Example by name."""
    return _example(record).features.feature


def parse(record: bytes, form: FrameFormat) -> StoredVideo:
    """Returns the video of a record that `serialize` wrote; decodes no frame."""
    stored = entries(record)
    text = lambda name: stored[name].bytes_list.value[0].decode()
    floats = lambda name: np.frombuffer(stored[name].bytes_list.value[0], np.float64)
    height, width = stored["source_size"].int64_list.value
    return StoredVideo(
        info=VideoInfo(
            path=text("name"),
            duration=float(floats("duration")[0]),
            frame_rate=float(floats("frame_rate")[0]),
            height=height,
            width=width,
        ),
        captions=[caption.decode() for caption in stored["captions"].bytes_list.value],
        seconds=floats("seconds"),
        until=float(floats("until")[0]),
        slack=float(floats("slack")[0]),
        frames=_frames(stored["video"].bytes_list.value, form),
        unusable=text("unusable"),
    )


def _frames(values: Sequence[bytes], form: FrameFormat) -> Sequence[Frame]:
    """Returns a value for each frame; of raw ones all are in one, which is not copied."""
    if form.encoding != "raw":
        return values
    (whole,), size = values, form.height * form.width * 3
    return list(np.frombuffer(whole, np.uint8).reshape(-1, size))
