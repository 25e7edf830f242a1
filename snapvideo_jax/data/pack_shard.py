"""Packs one shard of a build, in a process of its own: python -m snapvideo_jax.data.pack_shard.

A `Shard` comes in as JSON. Before each file its number goes out, so that whoever waits knows which
one a decoder dies of or hangs at; at the end, what was written. The shard appears under its name
when it is whole.
"""

import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import UInt8

from snapvideo_jax.data import clips, packed
from snapvideo_jax.data.choice import Aspect, Framing, VideoInfo
from snapvideo_jax.errors import DataError, reason
from snapvideo_jax.files.tar import Member

MEASURED = 16  # of so many frames, one is read back to measure what JPEG loses


@dataclass(frozen=True)
class Shard:
    """What a shard holds.

    Attributes:
      path: of the shard.
      root: folder of the files.
      rows: (kind, path below the root, captions) of each file, in order.
      members: (path, name, offset, size) of the files that lie in tar shards, by path.
      unusable: reasons why rows, by number, are not even tried.
      height: H, pixels.
      width: W, pixels.
      aspect: as in `choice.Framing`.
      encoding: one of `packed.ENCODINGS`.
      quality: of JPEG.
      seconds: after which the system ends the process in the middle of a file.
    """

    path: str
    root: str
    rows: list[tuple[str, str, list[str]]]
    members: dict[str, tuple[str, str, int, int]]
    unusable: dict[str, str]
    height: int
    width: int
    aspect: Aspect
    encoding: str
    quality: int
    seconds: int

    @property
    def form(self) -> packed.FrameFormat:
        """How frames are stored."""
        return packed.FrameFormat(self.encoding, self.height, self.width)

    def place(self, name: str) -> Path | Member:
        """Returns where a file lies."""
        return Member(*self.members[name]) if self.members else Path(self.root) / name

    def to_json(self) -> str:
        """Returns what `main` reads."""
        return json.dumps(asdict(self))


def store(shard: Shard, number: int) -> tuple[packed.StoredVideo, list[float]]:
    """Returns row `number` as a record, and the loss of some of its frames in dB.

    A file that cannot be used keeps its row: the record says why.
    """
    kind, name, captions = shard.rows[number]
    try:
        if str(number) in shard.unusable:
            raise DataError(shard.unusable[str(number)])
        read = _store_video if kind == "video" else _store_picture
        return read(shard, name, captions)
    except DataError as error:
        none = VideoInfo(name, duration=0.0, frame_rate=0.0, height=0, width=0)
        why = str(error).replace(f"{shard.root}/", "")  # the same bytes wherever the folder is
        return packed.StoredVideo(none, captions, np.zeros(0), 0.0, 0.0, [], unusable=why), []


def _store_video(
    shard: Shard, name: str, captions: list[str]
) -> tuple[packed.StoredVideo, list[float]]:
    path = shard.place(name)
    info, seconds, frames, losses, size = clips.probe(path), [], [], [], 0
    until = slack = 0.0
    for timed in clips.decode_all(path, shard.height, shard.width, Framing(shard.aspect)):
        frame = packed.compress(timed.pixels, shard.encoding, shard.quality)
        if len(frames) % MEASURED == 0:
            losses.append(signal_to_noise(timed.pixels, packed.decompress(frame, shard.form)))
        seconds.append(timed.start)
        frames.append(frame)
        until, slack, size = timed.until, timed.slack, size + len(frame)
        if size > packed.MAX_BYTES:
            raise DataError(
                f"{path}: its frames are over {packed.MAX_BYTES >> 20} MiB, and every clip of it "
                "would read them all; cut it into shorter files"
            )
    info = info._replace(path=name)
    return packed.StoredVideo(info, captions, np.array(seconds), until, slack, frames), losses


def _store_picture(
    shard: Shard, name: str, captions: list[str]
) -> tuple[packed.StoredVideo, list[float]]:
    path = shard.place(name)
    height, width = clips.probe_image(path)
    pixels = clips.load_image(path, shard.height, shard.width, Framing(shard.aspect))
    frame = packed.compress(pixels, shard.encoding, shard.quality)
    loss = signal_to_noise(pixels, packed.decompress(frame, shard.form))
    info = VideoInfo(name, duration=1.0, frame_rate=1.0, height=height, width=width)
    return packed.StoredVideo(info, captions, np.zeros(1), 1.0, 0.5, [frame]), [loss]


def signal_to_noise(a: UInt8[np.ndarray, "H W 3"], b: UInt8[np.ndarray, "H W 3"]) -> float:
    """Returns the peak signal-to-noise ratio of two pictures in dB; infinite if they are equal."""
    error = float(np.square(a.astype(np.float32) - b).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def write(shard: Shard) -> Iterator[dict[str, Any]]:
    """Writes the shard; yields each row's number before it is read, and at the end the totals."""
    path = Path(shard.path)
    # A worker whose caller was killed may still write, until it reports its next file to nobody.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    layout = packed.features(shard.form)
    options = "group_size:1"  # a record is read by itself
    if shard.encoding == "raw":
        options += ",uncompressed"  # else reading takes twice as long
    writer = ArrayRecordWriter(str(unfinished), options)
    totals: dict[str, Any] = {"frames": 0, "record_bytes": 0, "losses": [], "unusable": []}
    for number in range(len(shard.rows)):
        yield {"row": number}
        signal.alarm(shard.seconds)
        video, losses = store(shard, number)
        signal.alarm(0)
        record = packed.serialize(video, layout)
        writer.write(record)
        totals["frames"] += len(video.frames)
        totals["record_bytes"] += len(record)
        totals["losses"] += [loss for loss in losses if math.isfinite(loss)]
        if video.unusable:
            totals["unusable"].append([video.info.path, video.unusable])
    writer.close()
    reader = ArrayRecordReader(str(unfinished))
    if reader.num_records() != len(shard.rows):
        raise OSError(f"{unfinished} is cut short")
    reader.close()
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    losses = totals.pop("losses")
    yield totals | {
        "records": len(shard.rows),
        "bytes": path.stat().st_size,
        "sha256": digest,
        "measured": len(losses),
        "loss_sum": sum(losses),
        "loss_worst": min(losses, default=0.0),
    }


def main() -> None:
    """Packs the shard that stdin describes."""
    try:
        for line in write(Shard(**json.load(sys.stdin))):
            print(json.dumps(line), flush=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: how ArrayRecord says what went wrong
        print(json.dumps({"error": reason(error)}), flush=True)


if __name__ == "__main__":
    main()
