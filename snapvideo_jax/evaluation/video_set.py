"""A folder of videos as batches: complete, of one size and of equal length, or refused."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import video

Batches = Iterator[UInt8[np.ndarray, "_ T H W 3"]]

READERS = {
    ".npz": video.read_npz,
    **dict.fromkeys((".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif"), video.read_video),
}


def paths(folder: str | Path, n: int | None = None) -> list[Path]:
    """Returns the first n videos of a folder by name, all of them for None.

    A video is a file of a suffix in READERS, or a folder of PNG frames.
    Raises DataError, one line, where there are none, or fewer than n.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder of videos")
    videos = [path for path in sorted(folder.iterdir()) if _is_video(path)]
    if not videos or len(videos) < (n or 0):
        raise DataError(
            f"{folder}: holds {len(videos)} videos, expected {n or 'some'}; a distance depends on "
            "the number of samples, so complete the set or compare at the smaller number"
        )
    return videos[:n]


def _is_video(path: Path) -> bool:
    frames = path.is_dir() and any(path.glob("*.png"))
    return frames or (path.suffix.lower() in READERS and not path.name.startswith("."))


def batches(videos: list[Path], *, frames: int, batch_size: int) -> Batches:
    """Yields the first `frames` frames of each video, `batch_size` videos at a time.

    Raises DataError, one line that names the file, where a video is damaged, shorter than `frames`
    or not of the size of the first one.
    """
    size = None
    for start in range(0, len(videos), batch_size):
        batch = []
        for path in videos[start : start + batch_size]:
            batch.append(read(path, frames, size))
            size = size or batch[0].shape[1:3]
        yield np.stack(batch)


def read(
    path: Path, frames: int, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Returns the first `frames` frames of a video.

    Raises DataError, one line, where it is damaged, shorter, or not of `size` (height, width).
    """
    clip = video.read_frames(path) if path.is_dir() else READERS[path.suffix.lower()](path)
    if len(clip) < frames:
        raise DataError(f"{path}: has {len(clip)} frames, the protocol takes {frames}")
    if size and clip.shape[1:3] != size:
        raise DataError(
            f"{path}: is {clip.shape[1]} x {clip.shape[2]}, the set began with {size[0]} x "
            f"{size[1]}; resize all of them alike first"
        )
    return clip[:frames]
