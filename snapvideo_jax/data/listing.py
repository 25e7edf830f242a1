"""What a folder lists: captioned files, rows of a manifest or of a CSV, or members of tar shards.

Nothing is decoded, and nothing outside the folder is opened, whatever its lists or links say.
"""

import csv
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import DataError, reason
from snapvideo_jax.files.tar import Member

MANIFEST, CSV, INDEX = "manifest.jsonl", "manifest.csv", "index.jsonl"
VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SUFFIXES = VIDEO_SUFFIXES + IMAGE_SUFFIXES
REMAKE = "delete it and make it anew: python -m launch.prepare index --shards="

Captions = str | tuple[str, ...]  # the caption of a file, or several


class Entry(NamedTuple):
    """A file that a folder lists.

    Attributes:
      kind: "video" or "image".
      name: path relative to the folder; of a member, below the path of its shard.
      captions: of the file.
      size: bytes.
      member: where it lies in a shard; None for a file by itself.
    """

    kind: str
    name: str
    captions: Captions
    size: int
    member: Member | None = None


def entries(root: Path) -> Iterator[Entry]:
    """Yields what a folder lists, in its order.

    Raises:
      DataError: no such folder, several lists, a malformed row (by line number), a path that leaves
        the folder, a missing file or caption, shards without an index or with another one.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder")
    readers = {MANIFEST: _manifest_rows, CSV: _csv_rows, INDEX: _index_rows}
    lists = [name for name in readers if (root / name).is_file()]
    if len(lists) > 1:
        raise DataError(f"{root}: holds {' and '.join(lists)}; leave the one that lists the data")
    return readers[lists[0]](root / lists[0]) if lists else _captioned_files(root)


class Fingerprint:
    """A hash over the kinds, names, captions and sizes of entries, in their order."""

    def __init__(self):
        self._hash, self._number = hashlib.sha256(b"["), 0

    def add(self, entry: Entry) -> None:
        """Adds the next entry."""
        self._hash.update((b", " if self._number else b"") + json.dumps(entry[:4]).encode())
        self._number += 1

    def hexdigest(self) -> str:
        """Returns the hash of what was added."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def kind_of(name: str) -> str | None:
    """Returns "video" or "image" by the suffix of a file, None for another one."""
    suffix = os.path.splitext(name)[1].lower()
    return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else None


class Inside:
    """Checks that paths stay in a folder; remembers the subfolders that do."""

    def __init__(self, root: Path):
        self._root = os.path.realpath(root)
        self._folders: dict[str, str] = {}  # subfolder -> where it really is

    def size(self, name: str) -> int:
        """Returns the bytes of a file, links followed; else ValueError with the reason."""
        if "://" in name or "\0" in name or os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError("is not a path inside the data folder")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError("is no name in UTF-8; rename the file") from None
        folder, _, base = name.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._real(folder)
        try:
            status = os.lstat(f"{self._folders[folder]}/{base}")
            if stat.S_ISLNK(status.st_mode):
                status = os.stat(self._real(name))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError("does not exist or is no file") from None
        except OSError as error:
            raise ValueError(f"cannot be read: {reason(error)}") from error
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("does not exist or is no file")
        return status.st_size

    def _real(self, name: str) -> str:
        real = os.path.realpath(os.path.join(self._root, name))
        if os.path.commonpath((self._root, real)) != self._root:
            raise ValueError("is a link that leaves the data folder")
        return real


def _size(inside: Inside, name: str) -> int:
    """Returns the bytes of a file in a list; ValueError says which is none."""
    try:
        return inside.size(name)
    except ValueError as error:
        raise ValueError(f"{name[:200]!r} {error}") from error


def _lines(path: Path, read: Callable[[str], Any]) -> Iterator[tuple[int, Any]]:
    """Yields line numbers and what `read` makes of each line that is not blank.

    Lines end at line feeds alone: JSON strings may hold what else cuts text. Raises DataError with
    the number of the line for a ValueError of `read`.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text.strip():
                        yield number, read(text)
                except UnicodeDecodeError as error:
                    raise DataError(f"{path} line {number}: is not UTF-8; save it so") from error
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path} line {number}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _manifest_rows(manifest: Path) -> Iterator[Entry]:
    inside = Inside(manifest.parent)

    def read(line: str) -> Entry:
        kind, name, captions = _parse_row(_parse_json(line))
        return Entry(kind, name, captions, _size(inside, name))

    return (entry for _, entry in _lines(manifest, read))


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from error


def _parse_row(row: Any) -> tuple[str, str, Captions]:
    """Returns kind, path, captions of a manifest row; ValueError with the reason if malformed."""
    row = row if isinstance(row, dict) else {}
    kinds = [kind for kind in ("video", "image") if kind in row]
    texts = [key for key in ("caption", "captions") if key in row]
    if len(kinds) != 1 or not isinstance(row[kinds[0]], str) or len(texts) != 1:
        raise ValueError(
            'expected {"video": "path", "caption": "text"}, or "image" for "video", or "captions"'
        )
    return kinds[0], row[kinds[0]], captions_of(row)


def captions_of(row: dict[str, Any]) -> Captions:
    """Returns the captions of a row of JSON; ValueError with the reason if they are malformed."""
    if "captions" in row:
        captions = row["captions"]
        if not isinstance(captions, list) or not captions or {*map(type, captions)} != {str}:
            raise ValueError("captions is no list of strings")
        return tuple(map(clean_caption, captions))
    caption = "" if row["caption"] is None else row["caption"]
    if not isinstance(caption, str):
        raise ValueError(f"caption is {type(caption).__name__}, expected a string")
    return clean_caption(caption)


def _csv_rows(table: Path) -> Iterator[Entry]:
    """Yields rows of a table with columns path and caption, or with WebVid's."""
    inside, number = Inside(table.parent), 0  # the last line that was read
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            names, number = rows.fieldnames or (), 1
            to_path, caption = _columns(names)
            for row in rows:
                number = rows.line_num
                if None in row or None in row.values():
                    raise ValueError("has more or fewer fields than the first line")
                name = to_path(row)
                if (kind := kind_of(name)) is None:
                    raise ValueError(f"{name!r} ends like none of {' '.join(SUFFIXES)}")
                yield Entry(kind, name, clean_caption(row[caption]), _size(inside, name))
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is not UTF-8 after line {number}; save it so") from error
    except csv.Error as error:
        raise DataError(f"{table} line {number + 1}: {error}") from error
    except ValueError as error:
        raise DataError(f"{table} line {number}: {error}") from error
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from error


def _columns(names: Any) -> tuple[Callable[[dict[str, str]], str], str]:
    """Returns row -> path, and the column of captions; ValueError for a table of other columns."""
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    if {"path", "caption"} <= set(names):
        return lambda row: row["path"], "caption"
    if {"videoid", "page_dir", "name"} <= set(names):  # WebVid's
        return lambda row: f"{row['page_dir']}/{row['videoid']}.mp4", "name"
    raise ValueError(
        "expected the columns path and caption, or WebVid's videoid, page_dir and name"
    )


def _index_rows(index: Path) -> Iterator[Entry]:
    """Yields the members that an index lists; a shard's line comes before those of its members."""
    root, inside = index.parent, Inside(index.parent)
    shard, size = "", 0

    def read(line: str) -> Entry | None:
        nonlocal shard, size
        row = _parse_json(line)
        if isinstance(row, dict) and "shard" in row:
            shard, size = str(row["shard"]), _size(inside, str(row["shard"]))
            if size != row.get("bytes"):
                raise ValueError(
                    f"{shard} has {size} bytes, and had {row.get('bytes')}; {REMAKE}{root}"
                )
            return None
        kind, name, captions = _parse_row(row)
        offset, length = row.get("offset"), row.get("size")
        if type(offset) is not int or type(length) is not int:
            raise ValueError(f"lacks offset or size; {REMAKE}{root}")
        if not 0 <= offset <= offset + length <= size:
            raise ValueError(f"lies outside {shard or 'any shard'}; {REMAKE}{root}")
        member = Member(os.path.join(root, shard), name, offset, length)
        return Entry(kind, f"{shard}/{name}", captions, length, member)

    return (entry for _, entry in _lines(index, read) if entry is not None)


def visible_files(root: Path) -> Iterator[str]:
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
    inside, visible = Inside(root), sorted(visible_files(root))
    tars = [name for name in visible if name.endswith(".tar")]
    if tars and not any(map(kind_of, visible)):
        raise DataError(
            f"{root}: holds tar shards without an index; make it: python -m launch.prepare index "
            f"--shards={root}"
        )
    for name in visible:
        if (kind := kind_of(name)) is None:
            continue
        text = Path(name).with_suffix(".txt").as_posix()
        if not (root / text).exists():
            raise DataError(
                f"{root / text}: missing; write the caption of {name} there, or leave it empty"
            )
        try:
            size, _ = inside.size(name), inside.size(text)
        except ValueError as error:
            raise DataError(f"{root / name}: it or its caption {error}") from error
        yield Entry(kind, name, clean_caption(_read_text(root / text)), size)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
