"""The index of a folder of WebDataset's tar shards: which captioned files lie in them, and where.

A sample is the members of one name but for the suffix: a video or a picture, and its caption in
NAME.txt, or in NAME.json as "caption" or "captions". The index has a line for each shard, with its
size and digest, and after it one for each of its files: what a row of a manifest has, and offset
and size of the member.
"""

import json
import os
from collections.abc import Callable, Iterator
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


class Totals(NamedTuple):
    """What an index lists."""

    shards: int
    videos: int
    pictures: int
    bytes: int


def index(folder: str | Path, workers: int, report: Callable[[int, int], None]) -> Totals:
    """Writes the index of a folder of tar shards; where there is one, compares it with them.

    Args:
      folder: of the shards, and of the index.
      workers: shards that are read at a time.
      report: called with shards done and shards in all.

    Raises:
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
    path, inside = root / listing.INDEX, listing.Inside(root)
    for name in names:
        try:
            inside.size(name)
        except ValueError as error:
            raise DataError(f"{root / name}: {error}") from error
    with ThreadPoolExecutor(workers) as pool:
        shards = pool.map(lambda name: [_shard_row(root, name), *_rows(root, name)], names)
        counted = _counting(shards, len(names), report)
        try:
            return _compare(path, counted) if path.is_file() else _write(path, counted)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _counting(
    shards: Iterator[list[dict]], total: int, report: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of all shards."""
    for number, rows in enumerate(shards, start=1):
        yield from rows
        report(number, total)


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> Totals:
    """Writes rows, a line each; the file appears when it is whole."""
    unfinished, totals = path.with_name(f".{path.name}.{os.getpid()}.tmp"), Totals(0, 0, 0, 0)
    try:
        with unfinished.open("w") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                totals = _add(totals, row)
        os.replace(unfinished, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {reason(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return totals


def _compare(path: Path, rows: Iterator[dict[str, Any]]) -> Totals:
    """Raises DataError at the first row that is not that of the index."""
    totals, shard = Totals(0, 0, 0, 0), ""
    with path.open() as lines:
        for row in rows:
            shard = row.get("shard", shard)
            if lines.readline() != json.dumps(row) + "\n":
                raise DataError(
                    f"{path}: {shard} is not what it was when the index was made; put it back, or "
                    "delete the index"
                )
            totals = _add(totals, row)
        if lines.readline():
            raise DataError(f"{path}: lists more than there is; put it back, or delete the index")
    return totals


def _add(totals: Totals, row: dict[str, Any]) -> Totals:
    shards, videos, pictures, size = totals
    if "shard" in row:
        return Totals(shards + 1, videos, pictures, size + row["bytes"])
    return Totals(shards, videos + ("video" in row), pictures + ("image" in row), size)


def _shard_row(root: Path, name: str) -> dict[str, Any]:
    path = root / name
    return {"shard": name, "bytes": path.stat().st_size, "sha256": storage.digest(path)}


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
