"""Adds text states to a folder of `embeddings`, one commit at a time; a crash loses no commit."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from snapvideo_jax import storage
from snapvideo_jax.data.embeddings import (
    BFLOAT16,
    FORMAT,
    HEADER,
    INDEX,
    RECORD,
    REMEDY,
    Embeddings,
    digest,
    read_header,
    shard_path,
)
from snapvideo_jax.errors import DataError, StorageError

SHARD_BYTES = 2**32


class Writer:
    """The one process that adds states to a folder, which is made where there is none.

    Args:
        folder: to write into.
        encoder: fingerprint of the encoder; a folder holds states of one encoder.
        channels: E.
        text_length: K.
        shard_bytes: size from which a file of states counts as full.

    Raises:
        DataError: the folder holds states of another encoder, width or length, or is damaged.
        ConfigError: another process writes into it.
        StorageError: it cannot be written.

    Attributes:
        embeddings: the states that were in the folder before this writer.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        encoder: str,
        channels: int,
        text_length: int,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.folder = storage.make_folder(folder)
        self._shard_bytes = shard_bytes
        self._records: list[tuple[bytes, int]] = []
        self._states: list[np.ndarray] = []
        self._lock = storage.lock(self.folder)
        try:
            self._open({"encoder": encoder, "channels": channels, "text_length": text_length})
        except BaseException:
            self._lock.close()
            raise

    def _open(self, facts: dict[str, Any]) -> None:
        if not (self.folder / HEADER).exists():
            if (self.folder / INDEX).exists():
                raise DataError(
                    f"{self.folder}: holds {INDEX} without {HEADER}; {REMEDY} elsewhere"
                )
            empty = {"format": FORMAT, "dtype": "bfloat16", "count": 0, "shards": []}
            self._write_header(empty | facts)
        self.embeddings = Embeddings(self.folder)
        self._header = read_header(self.folder)
        for name, value in facts.items():
            if self._header[name] != value:
                raise DataError(
                    f"{self.folder}: holds states of {name} {self._header[name]}, not {value}; "
                    "choose another folder, or the encoder that made it"
                )

    def add(
        self,
        captions: Sequence[str],
        states: Float[np.ndarray, "B K E"],
        mask: Bool[np.ndarray, "B K"],
    ) -> None:
        """Takes the states of captions that have none yet; `commit` writes them.

        `mask` is True at the first tokens of each caption; only these are written, as bfloat16.
        """
        tokens = mask.sum(axis=1)
        if (mask != (np.arange(mask.shape[1]) < tokens[:, None])).any():
            raise ValueError("mask must be True at the first tokens of each caption alone")
        expected = (len(captions), self._header["text_length"], self._header["channels"])
        if states.shape != expected:
            raise ValueError(f"states are {states.shape}, expected {expected}")
        for caption, rows, n in zip(captions, states, tokens, strict=True):
            self._records.append((digest(caption), int(n)))
            self._states.append(rows[:n].astype(BFLOAT16))

    def commit(self) -> None:
        """Writes whatever was added since the last commit; raises StorageError if that fails.

        Once it has returned, the states survive a crash. Until then the folder opens without them.
        """
        if not self._records:
            return
        row_bytes = self._header["channels"] * BFLOAT16.itemsize
        shards = list(self._header["shards"])
        if not shards or shards[-1] * row_bytes >= self._shard_bytes:
            shards.append(0)
        last, records = len(shards) - 1, np.empty(len(self._records), RECORD)
        for i, (key, tokens) in enumerate(self._records):
            records[i] = key, last, shards[-1], tokens
            shards[-1] += tokens
        first = self._header["shards"][last] if last < len(self._header["shards"]) else 0
        content = np.concatenate(self._states).view(np.uint8).tobytes()
        _append(shard_path(self.folder, last), first * row_bytes, content)
        _append(self.folder / INDEX, self._header["count"] * RECORD.itemsize, records.tobytes())
        count = self._header["count"] + len(records)
        self._write_header(self._header | {"shards": shards, "count": count})
        self._records, self._states = [], []

    def close(self) -> None:
        """Lets other writers in and drops whatever was not committed."""
        self._lock.close()

    def _write_header(self, header: dict[str, Any]) -> None:
        storage.write(self.folder / HEADER, json.dumps(header, indent=2).encode() + b"\n")
        self._header = header


def _append(path: Path, end: int, content: bytes) -> None:
    """Writes `content` behind the first `end` bytes, in place of an unfinished commit's rest."""
    try:
        with path.open("r+b" if path.exists() else "xb") as file:
            file.truncate(end)
            file.seek(end)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
