"""Files that are written whole or not at all, and folders."""

import fcntl
import os
from pathlib import Path
from typing import IO

from snapvideo_jax.errors import ConfigError, StorageError


def write(path: str | Path, content: bytes) -> None:
    """Replaces a file in one step: a reader sees the old content or the new, never a part of it.

    Raises StorageError with one line where the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished.is_file():
            unfinished.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def append(path: str | Path, content: bytes) -> None:
    """Adds to the end of a file; raises StorageError with one line if that fails."""
    try:
        with Path(path).open("ab") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def make_folder(path: str | Path) -> Path:
    """Makes a folder and its parents where there is none; raises StorageError if that fails."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def lock(folder: Path) -> IO[str]:
    """Returns a file that is locked as long as it is open; the lock ends with its process, too.

    Raises:
      ConfigError: another process holds it.
      StorageError: it cannot be written.
    """
    path = folder / "lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(f"{folder} is in use by another process; wait for its end") from None
    return file
