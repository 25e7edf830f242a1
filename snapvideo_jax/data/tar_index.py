"""The index of a folder of WebDataset's tar shards: which captioned files lie in them, and where.

A sample is the members of one name but for the suffix: a video or a picture, and its caption in
NAME.txt, or in NAME.json as "caption" or "captions". The index has a line for each shard, with its
size and digest, and after it one for each of its files: what a row of a manifest has, and offset
and size of the member.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax import storage
from snapvideo_jax.data import listing
from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import DataError, StorageError, reason
from snapvideo_jax.files import tar
from snapvideo_jax.files.tar import Member

MAX_CAPTION = 2**20  # bytes of a member that holds a caption
_SHARD = b'{"shard"'  # how the line of a shard begins


class Totals(NamedTuple):
    """What an index lists."""

    shards: int
    videos: int
    pictures: int
    bytes: int


def index(folder: str | Path, workers: int, report: Callable[[int, int], None]) -> Totals:
    """Writes the index of a folder of tar shards; where there is one, compares it with them.

    A call that was stopped is continued by the next one, shard by shard.

    Args:
      folder: of the shards, and of the index.
      workers: shards that are read at a time.
      report: called with shards done and shards in all.

    Raises:
      ConfigError: another process indexes the folder.
      DataError: no shards, one that `tar.members` refuses, a sample without caption or with two
        files, or shards that are not those of the index that is there.
      StorageError: the index cannot be written, or the folder is in a bucket that is not mounted.
    """
    storage.refuse_remote(folder)
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such data folder")
    names = sorted(name for name in listing.visible_files(root) if name.endswith(".tar"))
    if not names:
        raise DataError(f"{root}: holds no .tar file; compressed shards have to be decompressed")
    inside = listing.Inside(root)
    for name in names:
        try:
            inside.size(name)
        except ValueError as error:
            raise DataError(f"{root / name}: {error}") from error
    read = lambda name: [_shard_row(root, name), *_rows(root, name)]
    with ThreadPoolExecutor(workers) as pool:
        try:
            if (root / listing.INDEX).is_file():
                _compare(root / listing.INDEX, _counting(pool.map(read, names), len(names), report))
            else:
                with contextlib.closing(storage.lock(root)):
                    _write(root, names, lambda names: pool.map(read, names), report)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return _totals(root / listing.INDEX)


def _counting(
    shards: Iterator[list[dict]], total: int, report: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards."""
    for number, rows in enumerate(shards, start=1):
        yield from rows
        report(number, total)


def _write(
    root: Path,
    names: Sequence[str],
    read: Callable[[Sequence[str]], Iterator[list[dict]]],
    report: Callable[[int, int], None],
) -> None:
    """Lists one shard after the other in a file that becomes the index when it is whole.

    What a call that was stopped has listed is not read again.
    """
    path = root / listing.INDEX
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        done = _resume(unfinished, root, names)
    except OSError as error:
        raise StorageError(f"cannot go on with {unfinished}: {reason(error)}") from error
    for number, rows in enumerate(read(names[done:]), start=done + 1):
        storage.append(unfinished, "".join(json.dumps(row) + "\n" for row in rows).encode())
        report(number, len(names))
    try:
        os.replace(unfinished, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {reason(error)}") from error


def _resume(unfinished: Path, root: Path, names: Sequence[str]) -> int:
    """Cuts off the last shard that was listed, maybe in part; returns how many others there are.

    Shards of other names or sizes than now, and all after them, are cut off, too.
    """
    if not unfinished.is_file():
        return 0
    starts, lines, position = [], [], 0
    with unfinished.open("r+b") as file:
        for line in file:
            if line.startswith(_SHARD):
                starts.append(position)
                lines.append(line)
            position += len(line)
        done = 0
        for line, name in zip(lines[:-1], names, strict=False):
            now = json.dumps({"shard": name, "bytes": (root / name).stat().st_size})
            if not line.startswith(now.removesuffix("}").encode() + b","):
                break
            done += 1
        file.truncate(starts[done] if done else 0)
    return done


def _compare(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Raises DataError at the first row that is not that of the index."""
    shard = ""
    with path.open() as lines:
        for row in rows:
            shard = row.get("shard", shard)
            if lines.readline() != json.dumps(row) + "\n":
                raise DataError(
                    f"{path}: {shard} is not what it was when the index was made; put it back, or "
                    "delete the index"
                )
        if lines.readline():
            raise DataError(f"{path}: lists more than there is; put it back, or delete the index")


def _totals(path: Path) -> Totals:
    """Counts what an index lists, by how its lines begin."""
    shards, videos, pictures, size = 0, 0, 0, 0
    with path.open("rb") as lines:
        for line in lines:
            if line.startswith(_SHARD):
                shards, size = shards + 1, size + json.loads(line)["bytes"]
            elif line.startswith(b'{"video"'):
                videos += 1
            else:
                pictures += 1
    return Totals(shards, videos, pictures, size)


def _shard_row(root: Path, name: str) -> dict[str, Any]:
    path = root / name
    try:
        return {"shard": name, "bytes": path.stat().st_size, "sha256": storage.digest(path)}
    except storage.Damaged as error:
        raise DataError(f"{path}: {error}") from error


def _rows(root: Path, shard: str) -> list[dict[str, Any]]:
    """Returns a row for each video and picture of a shard, in its order."""
    members: dict[str, Member] = {}
    for member in tar.members(root / shard):
        if member.name in members:
            raise DataError(f"{member}: is there two times")
        members[member.name] = member
    rows, stems = [], set()
    for name, member in members.items():
        if (kind := listing.kind_of(name)) is None:
            continue
        stem = os.path.splitext(name)[0]
        if stem in stems:
            raise DataError(f"{member}: its sample has another video or picture")
        stems.add(stem)
        captions = _captions(members, stem, member)
        rows.append({kind: name} | captions | {"offset": member.offset, "size": member.size})
    return rows


def _captions(members: dict[str, Member], stem: str, member: Member) -> dict[str, Any]:
    """Returns the caption of a sample, or its captions, as an entry of its row."""
    if f"{stem}.txt" in members:
        return {"caption": clean_caption(_text(members[f"{stem}.txt"]))}
    if (holder := members.get(f"{stem}.json")) is None:
        raise DataError(f"{member}: has no caption; the shard lacks {stem}.txt and {stem}.json")
    try:
        row = json.loads(_text(holder))
        if not isinstance(row, dict) or not {"caption", "captions"} & set(row):
            raise ValueError('expected {"caption": "text"} or "captions"')
        captions = listing.captions_of(row)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{holder}: {error}") from error
    return {"caption": captions} if isinstance(captions, str) else {"captions": list(captions)}


def _text(member: Member) -> str:
    if member.size > MAX_CAPTION:
        raise DataError(f"{member}: is a caption of {member.size} bytes, over {MAX_CAPTION}")
    try:
        with member.open() as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{member}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{member}: cannot be read: {reason(error)}") from error
