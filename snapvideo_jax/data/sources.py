"""Captioned videos and pictures in a folder, read as a pure function of (seed, sample number).

Nothing outside the folder is opened, whatever its manifest or its links say.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import order, reading
from snapvideo_jax.data.choice import Clip, ClipSpec, Size
from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import DataError

MANIFEST = "manifest.jsonl"
VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_SUBSTITUTES = 20  # more bad files in a row are no bad luck but a bad folder

Captions = str | tuple[str, ...]  # the caption of a file, or several
Rows = tuple[tuple[str, Captions], ...]  # (path relative to the root, captions)
Entry = tuple[str, str, Captions, int]  # kind, path relative to the root, captions, bytes
Example = tuple[UInt8[np.ndarray, "T H W 3"], str, float, Size]
T = TypeVar("T")


class Drawn(NamedTuple):
    """A training example, and the name of what it comes from."""

    clip: Clip
    caption: str
    name: str

    def example(self) -> Example:
        """Returns what the pipeline reads."""
        return self.clip.frames, self.caption, self.clip.interval, self.clip.size


@dataclass(frozen=True)
class FolderSource:
    """The captioned files of one folder; `open_folder` makes it.

    Attributes:
      root: the folder.
      videos: (path relative to the root, captions) of each video, at least one.
      images: likewise for pictures; may be empty.
      fingerprint: hash over names, sizes and captions; other data have another one.
    """

    root: Path
    videos: Rows
    images: Rows
    fingerprint: str

    def captions(self) -> list[str]:
        """Returns every caption, in the order of the files, videos first."""
        rows = (*self.videos, *self.images)
        return [caption for _, captions in rows for caption in texts(captions)]

    def draw(
        self,
        g: int,
        *,
        image: bool,
        seed: int,
        spec: ClipSpec,
        report_bad: Callable[[str, str], None],
        read: Callable[[reading.Request], Clip] = reading.read,
    ) -> Drawn:
        """Draws training example `g`: the same bytes for the same arguments, on any host.

        Another file, chosen by (seed, g, attempt), stands in for one that cannot be used, so the
        order of all other files stays as it is.

        Args:
          g: global sample number.
          image: whether a still is due: T equal frames of a picture, or of one frame of a video
            where the folder has no pictures.
          seed: of the run.
          spec: size and frame rates of the clip.
          report_bad: called with path and reason for each file that could not be used.
          read: reads one file, here or in a process of its own.

        Raises:
          DataError: 21 files in a row were unusable.
        """
        rows = self.images if image and self.images else self.videos
        kind = "clip" if not image else "picture" if self.images else "frame"

        def read_row(row: int, stream: str) -> Drawn:
            name, captions = rows[row]
            clip = read(reading.Request(kind, str(self.root / name), spec, seed, g, stream))
            caption = choose_caption(texts(captions), seed, g)
            return Drawn(shown_throughout(clip, spec) if image else clip, caption, name)

        return first_usable(
            read_row,
            g,
            image=image,
            seed=seed,
            count=len(rows),
            report_bad=lambda row, reason: report_bad(rows[row][0], reason),
            place=self.root,
        )


def shown_throughout(still: Clip, spec: ClipSpec) -> Clip:
    """Returns T equal frames of a still."""
    return still._replace(frames=np.repeat(still.frames, spec.num_frames, axis=0))


def texts(captions: Captions) -> Sequence[str]:
    """Returns the captions of a file, of which there is at least one."""
    return (captions,) if isinstance(captions, str) else captions


def choose_caption(captions: Sequence[str], seed: int, g: int) -> str:
    """Returns the caption that sample g shows."""
    if len(captions) == 1:
        return captions[0]
    return captions[int(order.generator(seed, g, "caption").integers(len(captions)))]


def first_usable(
    read: Callable[[int, str], T],
    g: int,
    *,
    image: bool,
    seed: int,
    count: int,
    report_bad: Callable[[int, str], None],
    place: str | Path,
) -> T:
    """Returns what `read` makes of the row that sample g shows, or of the first usable substitute.

    Args:
      read: called with a row in range(count) and the name of this attempt's random numbers;
        raises DataError where the row cannot be used.
      g: global sample number.
      image: whether a still is due.
      seed: of the run.
      count: number of rows.
      report_bad: called with row and reason for each row that could not be used.
      place: where the rows are, for messages.

    Raises:
      DataError: 21 rows in a row were unusable.
    """
    stream, reason = "still" if image else "clip", ""
    for attempt in range(MAX_SUBSTITUTES + 1):
        row = _row(seed, g, attempt=attempt, count=count)
        try:
            return read(row, f"{stream} {attempt}")
        except DataError as error:
            reason = str(error)
            report_bad(row, reason)
    raise DataError(
        f"{place}: {MAX_SUBSTITUTES + 1} files in a row are unusable, the last: {reason}"
    )


def _row(seed: int, g: int, attempt: int, count: int) -> int:
    """Returns the row that sample g shows at first, and at each further attempt.

    Substitutes come in an order of their own, so that those of one sample all differ.
    """
    if attempt == 0:
        return int(order.index(np.array([g]), count, seed)[0])
    key = int(order.generator(seed, g, "substitutes").integers(2**62))
    return int(order.permute(np.array([(attempt - 1) % count]), count, key)[0])


def open_folder(path: str | Path) -> FolderSource:
    """Lists a folder of captioned videos and pictures, without decoding any.

    A `manifest.jsonl` has one row a line: {"video": "relative/path.mp4", "caption": "..."} or
    {"image": "relative/path.jpg", "caption": "..."}; a file may have several rows, and a row may
    have "captions": ["...", "..."], of which one is drawn each time. Without it the
    rows are all videos (.mp4 .mov .webm .mkv .avi) and pictures (.png .jpg .jpeg .webp) below the
    folder, sorted; the caption of `name.mp4` stands in `name.txt` beside it. Captions are UTF-8; an
    empty one means "no text".

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
    return FolderSource(
        root, videos=rows["video"], images=rows["image"], fingerprint=_fingerprint(entries)
    )


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
    """Returns the bytes of a file below `root`, links followed; else ValueError with the reason."""
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


def _parse_row(line: str) -> tuple[str, str, Captions]:
    """Returns kind, path, captions of a manifest row; ValueError with the reason if malformed."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from error
    kinds = [kind for kind in ("video", "image") if isinstance(row, dict) and kind in row]
    texts = [key for key in ("caption", "captions") if isinstance(row, dict) and key in row]
    if len(kinds) != 1 or not isinstance(row[kinds[0]], str) or len(texts) != 1:
        raise ValueError(
            'expected {"video": "path", "caption": "text"}, or "image" for "video", or "captions"'
        )
    if texts == ["captions"]:
        captions = row["captions"]
        if not isinstance(captions, list) or not captions or {*map(type, captions)} != {str}:
            raise ValueError("captions is no list of strings")
        return kinds[0], row[kinds[0]], tuple(map(clean_caption, captions))
    caption = "" if row["caption"] is None else row["caption"]
    if not isinstance(caption, str):
        raise ValueError(f"caption is {type(caption).__name__}, expected a string")
    return kinds[0], row[kinds[0]], clean_caption(caption)


def _visible_files(root: Path) -> Iterator[str]:
    """Yields the path, relative to `root`, of each file that is neither hidden nor in a hidden one.

    Links to folders are followed. Raises DataError where one leaves `root` or leads back to a
    folder that it is in, and where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    real_root = os.path.realpath(root)
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for link in (os.path.join(folder, name) for name in subfolders):
            if os.path.islink(link):
                target, here = os.path.realpath(link), os.path.realpath(folder)
                if os.path.commonpath((real_root, target)) != real_root:
                    raise DataError(f"{link}: is a link that leaves the data folder")
                if os.path.commonpath((target, here)) == target:
                    raise DataError(f"{link}: is a link to a folder that it is in; remove it")
        relative = Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))


def _captioned_files(root: Path) -> Iterator[Entry]:
    real_root = os.path.realpath(root)
    suffixes = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    for name in sorted(n for n in _visible_files(root) if Path(n).suffix.lower() in suffixes):
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
