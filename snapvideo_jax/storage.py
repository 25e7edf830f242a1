"""Files that are written whole or not at all, JSON that says whether it is whole, and folders."""

import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from snapvideo_jax.errors import ConfigError, StorageError, reason
from snapvideo_jax.kinds import Kind, shown

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # gs://, s3://; pathlib makes one slash of two


class Damaged(Exception):
    """Why a file cannot be used, for a message that names the file."""


def write(path: str | Path, content: bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, never a part of it.

    Raises StorageError with one line where the file cannot be written.
    """
    refuse_remote(path)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished.is_file():
            unfinished.unlink()
        raise StorageError(f"cannot write {path}: {reason(error)}") from error


def append(path: str | Path, content: bytes) -> None:
    """Adds to the end of a file, all of `content` or nothing.

    Raises StorageError with one line if that fails.
    """
    try:
        with Path(path).open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {reason(error)}") from error


def make_folder(path: str | Path) -> Path:
    """Makes a folder and its parents where there is none; raises StorageError if that fails."""
    refuse_remote(path)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {reason(error)}") from error
    return path


def lock(folder: Path, name: str = "lock") -> IO[str]:
    """Returns a file that is locked as long as it is open; the lock ends with its process, too.

    name: of the file in `folder`; locks of other names exclude nobody.

    Raises:
      ConfigError: another process holds it.
      StorageError: it cannot be written.
    """
    path = folder / name
    try:
        file = path.open("w")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if not isinstance(error, BlockingIOError):  # NFS without its lock manager, or stale
            raise StorageError(f"cannot lock {path}: {reason(error)}") from error
        raise ConfigError(f"{folder} is in use by another process; wait for its end") from None
    return file


def refuse_remote(path: str | Path) -> None:
    """Raises StorageError for the address of a bucket, which would become a folder of that name."""
    if REMOTE.match(str(path)):
        raise StorageError(
            f"{path} is no folder of this machine, and nothing else is read or written; mount the "
            "bucket (for gs://, with gcsfuse) and give the path where it is mounted"
        )


def probe(folder: str | Path) -> None:
    """Proves that `folder` can be written, or made, by a file that goes again at once.

    Makes no folder. Raises StorageError if it cannot.
    """
    refuse_remote(folder)
    there = Path(folder).absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {reason(error)}") from error


def read(path: Path) -> bytes:
    """Reads a file; raises Damaged if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"cannot be read: {reason(error)}") from error


def parse_object(content: bytes, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Parses a JSON object that has an entry of each of `kinds`; others are returned as they are.

    Raises Damaged for what is no JSON, no object, lacks an entry, or has one of another kind.
    """
    try:
        entries = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged("is not valid JSON") from error
    if not isinstance(entries, dict):
        raise Damaged("is not an object of JSON")
    check_kinds(entries, kinds)
    return entries


def check_kinds(entries: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raises Damaged unless `entries` has one of each of `kinds`."""
    for name, kind in kinds.items():
        if name not in entries:
            raise Damaged(f"lacks {name}")
        if not kind.holds(entries[name]):
            raise Damaged(f"has {name}={shown(entries[name])}, which must be {kind}")


def digest(path: Path) -> str:
    """Computes a digest of a file, or of all files of a folder; raises Damaged if that fails."""
    try:
        if path.is_dir():
            parts = [f"{inner.name} {digest(inner)}\n" for inner in sorted(path.iterdir())]
            return hashlib.sha256("".join(parts).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(f"cannot be read: {reason(error)}") from error


def sealed(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON entries with one more, `seal`, a digest of the others."""
    others = json.loads(json.dumps({k: v for k, v in entries.items() if k != "seal"}))
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return {**others, "seal": hashlib.sha256(text.encode()).hexdigest()}


def check_seal(entries: Mapping[str, Any]) -> None:
    """Raises Damaged unless the entries are those that were sealed."""
    if sealed(entries)["seal"] != entries.get("seal"):
        raise Damaged("is not as it was written: its digest differs")
