"""Text states of a data set, stored once and read by every run: captions in, T5's states out.

A folder holds embeddings.json (how much is committed, and by which encoder), index.bin (records of
one size: digest of a caption, shard, first row, rows) and states-00000.bin, ... (bfloat16, a row
for each real token). The .bin files only grow. embeddings.json, replaced in one step, says how much
of each is valid; the next writer cuts off whatever a crash left behind that.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float

from snapvideo_jax.data.text import clean_caption
from snapvideo_jax.errors import DataError

FORMAT = 1
HEADER, INDEX = "embeddings.json", "index.bin"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The record of a caption. numpy drops zeros at the end of a digest, but of both that it compares.
RECORD = np.dtype([("digest", "S32"), ("shard", "<u4"), ("row", "<u8"), ("tokens", "<u4")])
SIZES = ("channels", "text_length", "count")
REMEDY = "make the folder again with python -m launch.prepare embed"


def fingerprint(weights: Mapping[str, int], vocabulary: bytes, dtype: str) -> str:
    """Returns 16 hexadecimal digits that change with whatever changes the states of a caption.

    These are the encoder's parameters (digests by name), the sentencepiece model, and the dtype of
    matrix products.
    """
    facts = [sorted(weights.items()), hashlib.sha256(vocabulary).hexdigest(), dtype]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def digest(caption: str) -> bytes:
    """Returns the 32 bytes that identify a caption; captions that clean alike are one."""
    return hashlib.sha256(clean_caption(caption).encode()).digest()


class Embeddings:
    """The states in a folder of `embeddings_writer.Writer`, as of its last commit.

    Raises DataError with one line where the folder is missing, damaged or cut short.

    Attributes:
        encoder: fingerprint of the encoder.
        channels: E, width of the states.
        text_length: K, tokens to which captions are cut and padded.
        count: number of captions.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        header = read_header(self.folder)
        self.encoder: str = header["encoder"]
        self.channels, self.text_length, self.count = (header[name] for name in SIZES)
        self._shards = [self._open_shard(i, rows) for i, rows in enumerate(header["shards"])]
        path = self.folder / INDEX
        _check_size(path, self.count * RECORD.itemsize)
        records = np.fromfile(path, RECORD, self.count) if self.count else np.empty(0, RECORD)
        self._records = records[np.argsort(records["digest"])]
        self._digests = self._records["digest"].copy()  # contiguous, so that searching copies none
        _check_records(path, records, rows=header["shards"], text_length=self.text_length)

    def check(self, channels: int, text_length: int) -> None:
        """Raises DataError unless the states are `channels` wide and padded to `text_length`."""
        for field, value, stored in (
            ("model.text_encoder.channels", channels, self.channels),
            ("data.text_length", text_length, self.text_length),
        ):
            if value != stored:
                raise DataError(
                    f"{self.folder}: {field} is {stored} of the states stored there, and {value} "
                    f"in the config; set --config.{field}={stored} or store them anew"
                )

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Returns the captions, cleaned, that have no states yet, each once, in their order.

        Empty ones need no states and are never missing.
        """
        cleaned = [caption for caption in dict.fromkeys(map(clean_caption, captions)) if caption]
        _, present = self._find(cleaned)
        return [caption for caption, known in zip(cleaned, present, strict=True) if not known]

    def __call__(
        self, captions: Sequence[str]
    ) -> tuple[Float[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]:
        """Returns states (bfloat16; zero where padded) and the mask of real tokens.

        An empty caption means no text: its mask is False throughout. Raises DataError, which names
        the caption, where one has no states.
        """
        states = np.zeros((len(captions), self.text_length, self.channels), BFLOAT16)
        mask = np.zeros(states.shape[:2], bool)
        positions, present = self._find(captions)
        for row, caption in enumerate(captions):
            if not present[row]:
                if clean_caption(caption):
                    raise self._missing_error(caption)
                continue
            _, shard, first, tokens = self._records[positions[row]].tolist()
            states[row, :tokens] = self._shards[shard][first : first + tokens]
            mask[row, :tokens] = True
        return states, mask

    def _find(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns each caption's position among the records, and whether it is one of them."""
        if not self.count:
            return np.zeros(len(captions), int), np.zeros(len(captions), bool)
        digests = np.array([digest(caption) for caption in captions], "S32")
        positions = np.searchsorted(self._digests, digests).clip(max=self.count - 1)
        return positions, self._digests[positions] == digests

    def _missing_error(self, caption: str) -> DataError:
        shown = clean_caption(caption)[:200]
        return DataError(
            f"{self.folder}: holds no states of the caption {shown!r}; add those of a data set "
            f"with python -m launch.prepare embed --out={self.folder} (see its --help)"
        )

    def _open_shard(self, number: int, rows: int) -> np.ndarray:
        path = shard_path(self.folder, number)
        _check_size(path, rows * self.channels * BFLOAT16.itemsize)
        if not rows:
            return np.empty((0, self.channels), BFLOAT16)
        return np.memmap(path, BFLOAT16, "r", shape=(rows, self.channels))


def shard_path(folder: Path, number: int) -> Path:
    """Returns the path of one shard's states."""
    return folder / f"states-{number:05d}.bin"


def read_header(folder: Path) -> dict[str, Any]:
    """Returns what embeddings.json says; raises DataError where it is missing or damaged."""
    path = folder / HEADER
    try:
        header = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; make the folder with python -m "
            "launch.prepare embed"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON; {REMEDY}") from error
    whole = isinstance(header, dict) and header.get("format") == FORMAT
    if not whole or header.get("dtype") != "bfloat16" or type(header.get("encoder")) is not str:
        raise DataError(f"{path}: is not of format {FORMAT}; {REMEDY}")
    shards = header.get("shards")
    sizes = [header.get(name) for name in SIZES] + (shards if isinstance(shards, list) else [None])
    if not all(type(size) is int and 0 <= size < 2**62 for size in sizes):
        raise DataError(f"{path}: has sizes that are no whole numbers; {REMEDY}")
    return header


def _check_size(path: Path, least: int) -> None:
    """Raises DataError where a file is shorter than what was committed to it."""
    size = path.stat().st_size if path.is_file() else 0
    if size < least:
        raise DataError(f"{path}: has {size} bytes, and {least} were stored in it; {REMEDY}")


def _check_records(path: Path, records: np.ndarray, rows: list[int], text_length: int) -> None:
    """Raises DataError where a record points outside the shards, which have `rows` rows."""
    end = records["row"] + records["tokens"]
    beyond = np.array([*rows, 0], np.uint64)[np.minimum(records["shard"], len(rows))] < end
    wrong = beyond | (end < records["row"]) | (records["shard"] >= len(rows))
    wrong |= records["tokens"] > text_length
    if wrong.any():
        raise DataError(f"{path}: {int(wrong.sum())} records point at no states; {REMEDY}")
