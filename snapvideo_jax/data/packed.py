"""Videos as records that need no video decoder: every frame at training size, by itself.

A record is a tf.train.Example, as tensorflow-datasets stores it, so a folder of them is one of its
data sets. All frames of a video are there with the seconds at which they start: any clip, at any
frame rate, is a few of them. Files that cannot be decoded keep their places, with the reason.
"""

import io
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
ENCODINGS = ("jpeg", "png")
MAX_BYTES = 256 * 2**20  # of one record: every clip that is drawn reads all of it


class StoredVideo(NamedTuple):
    """A video, or a picture as a video of one frame.

    Attributes:
      info: its name, length, rate and size before it was scaled.
      captions: at least one; an empty one means no text.
      seconds: when each frame starts.
      until: when the last frame ends, seconds.
      slack: seconds by which a frame may start after a time at which it is shown.
      frames: JPEG or PNG files.
      unusable: why there are no frames, or "".
    """

    info: VideoInfo
    captions: Sequence[str]
    seconds: Float[np.ndarray, " N"]
    until: float
    slack: float
    frames: Sequence[bytes]
    unusable: str = ""


def compress(pixels: UInt8[np.ndarray, "H W 3"], encoding: str, quality: int) -> bytes:
    """Returns a frame as a file: "png", without loss, or "jpeg" with all of its colors."""
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    if encoding == "png":
        picture.save(content, "PNG", compress_level=1)  # at small sizes no larger than at 9
    else:
        picture.save(content, "JPEG", quality=quality, subsampling=0)
    return content.getvalue()


def decompress(frame: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of a frame; raises DataError where it is no whole JPEG or PNG file."""
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "PNG")) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"a stored frame cannot be read: {reason(error)}") from error


def decode(
    video: StoredVideo,
    start: float,
    rate: float,
    num_frames: int,
    to_pixels: Callable[[bytes], UInt8[np.ndarray, "H W 3"]] = decompress,
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


def features(height: int, width: int, encoding: str) -> Any:
    """Returns the features of a record, for tensorflow-datasets."""
    import tensorflow_datasets as tfds

    exact = lambda shape: tfds.features.Tensor(  # a float feature would be rounded to 32 bits
        shape=shape, dtype=np.float64, encoding=tfds.features.Encoding.BYTES
    )
    frame = tfds.features.Image(shape=(height, width, 3), encoding_format=encoding)
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Sequence(frame),
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


def serialize(video: StoredVideo, layout: Any) -> bytes:
    """Returns the record of a video whose frames are as `features` described them in `layout`.

    The same video is the same bytes in every process.
    """
    content = layout.serialize_example(
        {
            "video": [io.BytesIO(frame) for frame in video.frames],
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


def parse(record: bytes) -> StoredVideo:
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
        frames=stored["video"].bytes_list.value,
        unusable=text("unusable"),
    )
