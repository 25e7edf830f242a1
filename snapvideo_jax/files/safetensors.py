"""Safetensors files: the header is checked as a whole before any data are read, whole or in slices.

The format: 8 bytes with the length of the header (little-endian), the header (JSON: tensor name ->
dtype, shape, data_offsets), then the data; every byte of them belongs to exactly one tensor.
Nothing in such a file is executed. A header's claims are compared with the size of the file first,
so a forged one cannot make the reader allocate more than the file is large.
"""

import itertools
import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from snapvideo_jax.errors import DataError, reason

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**56  # of the sizes that are not 0: what numpy can index, whatever the dtype
LENGTH = struct.Struct("<Q")
# The first bytes of pickles (zipped or plain), which may run code when they are loaded. A header of
# 640 bytes begins like one too, so these only choose the words of a refusal.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Tensors = Mapping[str, tuple[tuple[int, ...], Any]]  # name -> (shape, dtype) in a file to write


class TensorInfo(NamedTuple):
    """One tensor of a file: shape, dtype, and the offsets of its bytes in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    end: int


def open_file(path: str | Path) -> dict[str, TensorInfo]:
    """Returns every tensor of a safetensors file, from its header alone; reads no data.

    Raises:
        DataError: one line, where the file is missing, cut short or a pickle, or its header is not
            valid: its length, JSON, a name twice, a dtype or shape, or bytes that overlap, lie
            outside the file or belong to no tensor.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries, data_start = _header(file, size, path)
    except OSError as error:
        raise DataError(f"cannot read the weights {path}: {error.strerror}") from error
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _bad(path, "its __metadata__ is not an object")
    infos = {name: _info(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, infos, data_start, size)
    return infos


def read(path: str | Path, info: TensorInfo, index: Any = ...) -> np.ndarray:
    """Returns a copy of a tensor, or of the part that `index` (slices, as in numpy) selects.

    The file is memory-mapped: only the pages that hold the selected elements are read.
    Raises DataError with one line where the file became shorter or unreadable since `open_file`.
    """
    try:
        mapped = np.memmap(path, info.dtype, "r", info.start, info.shape)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the weights {path}: {error}") from error
    return np.array(mapped[index])


def open_folder(folder: str | Path) -> dict[str, tuple[Path, TensorInfo]]:
    """Returns every tensor of a folder and the file that holds it; reads no data.

    The folder holds model.safetensors, or shards and the index model.safetensors.index.json, whose
    weight_map says which file of the folder holds each tensor.
    Raises DataError as `open_file` does, and where index and shards disagree.
    """
    folder = Path(folder)
    if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
        return {name: (folder / WHOLE, info) for name, info in open_file(folder / WHOLE).items()}
    places, tensors = _weight_map(folder / INDEX), {}
    for file in sorted(set(places.values())):
        for name, info in open_file(folder / file).items():
            if places.get(name) != file:
                raise _bad(folder / file, f"it holds {_quoted(name)}, not placed there by {INDEX}")
            tensors[name] = folder / file, info
    for name, file in places.items():
        if name not in tensors:
            raise _bad(folder / file, f"it lacks {_quoted(name)}, which {INDEX} places in it")
    return tensors


def write(path: str | Path, tensors: Tensors, value: Callable[[str], np.ndarray]) -> None:
    """Writes a safetensors file, holding one array at a time.

    Args:
        path: the file; an existing one is replaced.
        tensors: name -> (shape, dtype), in the order of the file.
        value: name -> its array; called once for each name, in that order.

    Raises:
        OSError: the file cannot be written, as on a full disk.
        ValueError: an array is not of the shape and dtype that `tensors` says.
    """
    with Path(path).open("wb") as file:
        file.write(header(tensors))
        for name, (shape, dtype) in tensors.items():
            array = value(name)
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype}{array.shape}, not {dtype}{shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # before the next one is made
        file.flush()
        os.fsync(file.fileno())


def header(tensors: Tensors) -> bytes:
    """Returns the first bytes of a file of `tensors`, up to the data; their length divides by 8."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    entries, start = {}, 0
    for name, (shape, dtype) in tensors.items():
        end = start + math.prod(shape) * np.dtype(dtype).itemsize
        code = codes[np.dtype(dtype)]
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return LENGTH.pack(len(text)) + text


def _header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """Returns the header's JSON, and the offset at which the data begin."""
    begin = file.read(LENGTH.size)
    if len(begin) < LENGTH.size:
        raise _bad(path, f"it has {size} bytes, and the length of a header takes {LENGTH.size}")
    length = LENGTH.unpack(begin)[0]
    if length > min(MAX_HEADER, size - LENGTH.size):
        if begin.startswith(PICKLES):
            raise _bad(path, "it is a pickle, which is never loaded")
        raise _bad(path, f"its header claims {length} bytes, of a file of {size}")
    return _object(path, "header", file.read(length)), LENGTH.size + length


def _object(path: Path, name: str, content: bytes) -> dict[str, Any]:
    """Parses a JSON object; `name` is that of the content in messages."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its {name} is not valid JSON ({reason(error)[:200]})") from error
    if not isinstance(value, dict):
        raise _bad(path, f"its {name} is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{_quoted(name)} stands twice")
        entries[name] = value
    return entries


def _info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"{_quoted(name)} has not just dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise _bad(path, f"{_quoted(name)} has the unknown dtype {_quoted(code)}")
    if (
        not _natural(shape)
        or len(shape) > MAX_DIMENSIONS
        or math.prod(filter(None, shape)) >= MAX_ELEMENTS
    ):
        raise _bad(path, f"{_quoted(name)} has the shape {_quoted(shape)}")
    if not _natural(offsets) or len(offsets) != 2:
        raise _bad(path, f"{_quoted(name)} has the data_offsets {_quoted(offsets)}")
    start, end = offsets
    if math.prod(shape) * DTYPES[code].itemsize != end - start:
        raise _bad(
            path, f"{_quoted(name)}, {code}{_quoted(shape)}, has {_quoted(end - start)} bytes"
        )
    return TensorInfo(tuple(shape), DTYPES[code], data_start + start, data_start + end)


def _weight_map(index: Path) -> dict[str, str]:
    """Returns tensor -> file; refuses names of files that cannot lie beside the index."""
    try:
        places = _object(index, "text", index.read_bytes()).get("weight_map")
    except OSError as error:
        raise DataError(f"cannot read the weights {index}: {error.strerror}") from error
    if not isinstance(places, dict):
        raise _bad(index, "it has no weight_map")
    for file in places.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise _bad(index, f"it names the file {_quoted(file)}")
    return places


def _natural(numbers: Any) -> bool:
    """Returns whether this is a list of whole numbers, none negative; booleans are no numbers."""
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _check_layout(path: Path, infos: dict[str, TensorInfo], data_start: int, size: int) -> None:
    """Raises DataError where bytes overlap, are missing, or belong to no tensor."""
    ordered = sorted(infos.items(), key=lambda item: item[1][2:])
    ends = itertools.chain([data_start], (info.end for _, info in ordered))
    for (name, info), end in zip(ordered, ends, strict=False):
        if info.start != end:
            fault = "overlaps another tensor" if info.start < end else "leaves a gap before it"
            raise _bad(path, f"{_quoted(name)} {fault}")
    expected = max((info.end for info in infos.values()), default=data_start)
    if expected != size:
        raise _bad(path, f"it has {size} bytes, its header announces {expected}")


def _bad(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be used: {reason}; copy or export the whole of it again")


def _quoted(value: Any) -> str:
    """Returns `value` in one line of at most 80 characters, whatever the file holds."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
