"""Captioned videos and pictures in a folder, read as a pure function of (seed, sample number).

Nothing outside the folder is opened, whatever its manifest or its links say. The decoder is
imported where a file is decoded: benchmarks and plans, which read none, need none installed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import order
from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import DataError

MANIFEST = "manifest.jsonl"
VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_SUBSTITUTES = 20  # bad files in a row before a run gives up: not bad luck, a bad folder

Rows = tuple[tuple[str, str], ...]  # (path relative to the root, caption)
Entry = tuple[str, str, str, int]  # kind, path relative to the root, caption, bytes
Size = tuple[int, int]  # H, W of a source
Picture = tuple[UInt8[np.ndarray, "H W 3"], Size]
Example = tuple[UInt8[np.ndarray, "T H W 3"], str, float, Size]


@dataclass(frozen=True)
class FolderSource:
    """The captioned files of one folder; `open_folder` makes it.

    Attributes:
      root: the folder.
      videos: (path relative to the root, caption) of each video, at least one.
      images: likewise for pictures; may be empty.
      fingerprint: hash over names, sizes and captions; another one means other data.
    """

    root: Path
    videos: Rows
    images: Rows
    fingerprint: str

    def captions(self) -> list[str]:
        """Every caption, in the order of the files, videos first."""
        return [caption for _, caption in (*self.videos, *self.images)]

    def example(
        self,
        seed: int,
        g: int,
        image: bool,
        num_frames: int,
        height: int,
        width: int,
        frame_rates: Sequence[float],
        bad: Callable[[str, str], None],
    ) -> Example:
        """Training example `g`; the same arguments give the same bytes, on any host.

        A file that cannot be used is replaced by another one, chosen by (seed, g, attempt), so
        that the rest of the order stays as it is.

        Args:
          seed: of the run.
          g: global sample number.
          image: a still: T equal frames, of a picture or of one frame of a video if there are no
            pictures.
          num_frames: T.
          height: H, pixels.
          width: W, pixels.
          frame_rates: to choose from, frames per second.
          bad: called with path and reason of each file that was replaced.

        Returns:
          Frames, caption, frame interval in seconds (0 for a still), size (H, W) of the source.

        Raises:
          DataError: 21 files in a row were unusable.
        """
        from_pictures = image and bool(self.images)
        rows = self.images if from_pictures else self.videos
        purpose, reason = "still" if image else "clip", ""
        for attempt in range(MAX_SUBSTITUTES + 1):
            name, caption = rows[_row(seed, g, attempt, len(rows))]
            path, rng = self.root / name, order.generator(seed, g, f"{purpose} {attempt}")
            try:
                if not image:
                    return _draw_clip(path, caption, num_frames, height, width, frame_rates, rng)
                load = _load_picture if from_pictures else _draw_frame
                picture, size = load(path, height, width, rng)
                return np.repeat(picture[None], num_frames, axis=0), caption, 0.0, size
            except DataError as error:
                reason = str(error)
                bad(name, reason)
        raise DataError(
            f"{self.root}: {MAX_SUBSTITUTES + 1} files in a row are unusable, the last: {reason}"
        )


def _draw_clip(
    path: Path,
    caption: str,
    num_frames: int,
    height: int,
    width: int,
    frame_rates: Sequence[float],
    rng: np.random.Generator,
) -> Example:
    from snapvideo_jax.data import clips

    info = clips.probe(path)
    start, rate = clips.choose_clip(info, num_frames, frame_rates, rng)
    frames = clips.decode_clip(path, start, rate, num_frames, height, width)
    return frames, caption, 1 / rate, (info.height, info.width)


def _draw_frame(path: Path, height: int, width: int, rng: np.random.Generator) -> Picture:
    from snapvideo_jax.data import clips

    info = clips.probe(path)
    start, rate = clips.choose_clip(info, 1, (info.frame_rate,), rng)
    return clips.decode_clip(path, start, rate, 1, height, width)[0], (info.height, info.width)


def _load_picture(path: Path, height: int, width: int, rng: np.random.Generator) -> Picture:
    from snapvideo_jax.data import clips

    del rng  # a picture leaves nothing to chance
    return clips.load_image(path, height, width), clips.probe_image(path)


def _row(seed: int, g: int, attempt: int, count: int) -> int:
    """Which file sample g shows at first, and at each further attempt.

    Substitutes walk through an order of their own, so that those of one sample all differ.
    """
    if attempt == 0:
        return int(order.index(np.array([g]), count, seed)[0])
    walk = int(order.generator(seed, g, "substitutes").integers(2**62))
    return int(order.permute(np.array([(attempt - 1) % count]), count, walk)[0])


def open_folder(path: str | Path) -> FolderSource:
    """Lists a folder of captioned videos and pictures, without decoding any.

    With a `manifest.jsonl`, one row a line: {"video": "relative/path.mp4", "caption": "..."} or
    {"image": "relative/path.jpg", "caption": "..."}; a file may have several rows. Without one,
    every video (.mp4 .mov .webm .mkv .avi) and picture (.png .jpg .jpeg .webp) below the folder,
    sorted, `name.txt` beside `name.mp4` being its caption. Captions are UTF-8; an empty one means
    "no text".

    Raises:
      DataError: no such folder, no video in it, a malformed row (by line number), a path that
        leaves the folder, a missing file or caption.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder")
    manifest = root / MANIFEST
    entries = list(_manifest_rows(manifest) if manifest.is_file() else _captioned_files(root))
    rows = {
        kind: tuple((name, caption) for k, name, caption, _ in entries if k == kind)
        for kind in ("video", "image")
    }
    if not rows["video"]:
        raise DataError(
            f"{root}: no video in it; add {' '.join(VIDEO_SUFFIXES)} files, each with name.txt"
        )
    return FolderSource(root, rows["video"], rows["image"], _fingerprint(entries))


def _fingerprint(entries: list[Entry]) -> str:
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _size_inside(root: str, name: str) -> int:
    """Bytes of a file below `root`, links followed; ValueError with the reason if it is not one."""
    if "://" in name or "\0" in name or os.path.isabs(name) or ".." in Path(name).parts:
        raise ValueError("is not a path inside the data folder")
    real = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((root, real)) != root:
        raise ValueError("is a link that leaves the data folder")
    if not os.path.isfile(real):
        raise ValueError("does not exist or is no file")
    return os.path.getsize(real)


def _manifest_rows(manifest: Path) -> Iterator[Entry]:
    root = os.path.realpath(manifest.parent)
    # Not splitlines(), which also cuts at separators that JSON strings may hold.
    for number, line in enumerate(_read_text(manifest).split("\n"), start=1):
        if line.strip():
            try:
                kind, name, caption = _parse_row(line)
                yield kind, name, caption, _size_inside(root, name)
            except (ValueError, OSError, RecursionError) as error:
                raise DataError(f"{manifest} line {number}: {error}") from error


def _parse_row(line: str) -> tuple[str, str, str]:
    """Kind, path and caption of one manifest row; ValueError with the reason if malformed."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg} at column {error.colno})") from error
    kinds = [kind for kind in ("video", "image") if isinstance(row, dict) and kind in row]
    if len(kinds) != 1 or not isinstance(row[kinds[0]], str) or "caption" not in row:
        raise ValueError('expected {"video": "path", "caption": "text"}, or "image" for "video"')
    caption = "" if row["caption"] is None else row["caption"]
    if not isinstance(caption, str):
        raise ValueError(f"caption is {type(caption).__name__}, expected a string")
    return kinds[0], row[kinds[0]], clean_caption(caption)


def _captioned_files(root: Path) -> Iterator[Entry]:
    real_root = os.path.realpath(root)
    suffixes = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    found = (path for path in root.rglob("[!.]*") if path.suffix.lower() in suffixes)
    for name in sorted(path.relative_to(root).as_posix() for path in found if not path.is_dir()):
        text = Path(name).with_suffix(".txt").as_posix()
        if not (root / text).exists():
            raise DataError(
                f"{root / text}: missing; write the caption of {name} there, or leave it empty"
            )
        try:
            size, _ = _size_inside(real_root, name), _size_inside(real_root, text)
        except (ValueError, OSError) as error:
            raise DataError(f"{root / name}: it or its caption {error}") from error
        kind = "video" if Path(name).suffix.lower() in VIDEO_SUFFIXES else "image"
        yield kind, name, clean_caption(_read_text(root / text)), size
