"""Files of torch.save and torch.jit.save, read without torch and without running anything in them.

Such a file holds a pickle that lays out tensors. It is never unpickled: its instructions are
listed by the standard library's disassembler, and the few that build dictionaries, lists, numbers,
strings and tensors are followed here. Whatever else a pickle can do (import, call) is refused.
Three forms are read: zip archives of torch 1.6 and later, the TorchScript archives of
torch.jit.save, and the older form, whose pickles and data follow each other in one stream.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from snapvideo_jax.errors import DataError, reason
from snapvideo_jax.files.safetensors import DTYPES

STORAGES = {
    "BoolStorage": DTYPES["BOOL"],
    "ByteStorage": DTYPES["U8"],
    "CharStorage": DTYPES["I8"],
    "ShortStorage": DTYPES["I16"],
    "IntStorage": DTYPES["I32"],
    "LongStorage": DTYPES["I64"],
    "HalfStorage": DTYPES["F16"],
    "BFloat16Storage": DTYPES["BF16"],
    "FloatStorage": DTYPES["F32"],
    "DoubleStorage": DTYPES["F64"],
}
OLD_MAGIC = 0x1950A86A20F9469CFC6C
MAX_NODES, MAX_DEPTH = 200_000, 40  # of the tree of modules

_DICT, _REBUILD = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_FIRST_ARGUMENT = ("torch._utils _rebuild_parameter", "torch.jit._pickle ")
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(str):
    """A global that the pickle names, "module name"; it is never looked up."""


class _Module(dict):
    """An object of TorchScript: its attributes."""


_MARK = object()


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Returns every tensor by its name, as `state_dict()` has it.

    Raises:
        DataError: one line, where the file is missing, damaged, compressed, holds no tensor, or
            holds anything but tensors, numbers, strings and their containers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            tree, load = _open_zip(file) if zipfile.is_zipfile(file) else _open_stream(file)
            tensors = {name: _array(tensor, load) for name, tensor in _flat(tree).items()}
    except OSError as error:
        raise DataError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile and the disassembler raise many kinds for damaged files
        detail = reason(error)[:200]
        raise DataError(f"{path} cannot be used: {detail}; copy the whole of it again") from error
    if not tensors:
        raise DataError(f"{path} cannot be used: it holds no tensor")
    return tensors


def _open_zip(file: io.BufferedReader) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(file)
    entries = {name.partition("/")[2]: name for name in archive.namelist()}

    def content(name: str) -> bytes:
        if name not in entries:
            raise ValueError(f"its part {name[:80]!r} is missing")
        info = archive.getinfo(entries[name])
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its part {name[:80]!r} is compressed, which torch never does")
        return archive.read(info)

    tree = _follow(io.BytesIO(content("data.pkl")))
    return tree, lambda storage: content(f"data/{storage.key}")


def _open_stream(file: io.BufferedReader) -> tuple[Any, Callable[[_Storage], bytes]]:
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(1) != b"\x80":
        raise ValueError("it is no file of torch")
    file.seek(0)
    magic, _, _, tree, keys = (_follow(file) for _ in range(5))
    if magic != OLD_MAGIC:
        raise ValueError("it is a pickle, which is never loaded")
    sizes = {t.storage.key: t.storage for t in _flat(tree).values()}
    parts = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        if key not in sizes or count != sizes[key].size or count > length:
            raise ValueError(f"its part {str(key)[:80]!r} has {count} numbers")
        parts[key] = file.read(count * sizes[key].dtype.itemsize)
    return tree, lambda storage: parts[storage.key]


def _follow(file: io.BufferedReader | io.BytesIO) -> Any:
    """Returns what the pickle at the file's position lays out, and leaves the file after it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for code, value, _ in pickletools.genops(file):
        name = code.name
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(value)] = stack[-1]  # pyright: ignore
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(value)])  # pyright: ignore
        elif name not in ("PROTO", "FRAME"):
            _step(name, value, stack)
    raise ValueError("its pickle does not end")


def _step(name: str, value: Any, stack: list[Any]) -> None:
    """Follows one instruction that changes nothing but the stack."""
    if name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _VALUES:
        stack.append(value)
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "GLOBAL":
        stack.append(_Name(value))
    elif name in _TUPLES:
        count = _TUPLES[name]
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _since_mark(stack)
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop(stack, 2) if name == "SETITEM" else _since_mark(stack)
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        stack.append(_reduce(*_pop(stack, 2)))
    elif name == "NEWOBJ":
        _pop(stack, 2)
        stack.append(_Module())
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], _Module):  # else attributes of a dictionary, such as versions
            stack[-1].update(state)
    else:
        _refuse(f"the instruction {name}")


def _pop(stack: list[Any], count: int) -> list[Any]:
    items = stack[-count:]
    del stack[-count:]
    return items


def _since_mark(stack: list[Any]) -> list[Any]:
    place = max(i for i, item in enumerate(stack) if item is _MARK)
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"its pickle holds {what[:80]}, and more than tensors is never loaded")


def _reduce(function: Any, arguments: tuple) -> Any:
    if not isinstance(function, _Name):
        _refuse(f"a call of a {type(function).__name__}")
    if function == _DICT and not arguments:
        return {}
    if function == _REBUILD:
        storage, offset, shape, strides, *_ = arguments
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    if function.startswith(_FIRST_ARGUMENT):
        return arguments[0]
    return _refuse(f"a call of {function!r}")


def _storage(value: tuple) -> _Storage:
    kind, dtype, key, _, size, *_ = value
    name = str(dtype).partition(" ")[2]
    if kind != "storage" or name not in STORAGES:
        _refuse(f"a part of the kind {name!r}")
    return _Storage(STORAGES[name], str(key), int(size))


def _flat(tree: Any) -> dict[str, _Tensor]:
    """Returns the tensors of nested modules, by names joined with dots."""
    tensors, nodes = {}, [("", tree, 0)]
    for visited, (name, value, depth) in enumerate(nodes):
        if visited > MAX_NODES or depth > MAX_DEPTH:
            _refuse("too many modules")
        if isinstance(value, _Tensor):
            tensors[name] = value
        if isinstance(value, dict):
            prefix = f"{name}." if name else ""
            nodes += [(f"{prefix}{key}", part, depth + 1) for key, part in value.items()]
    return tensors


def _array(tensor: _Tensor, load: Callable[[_Storage], bytes]) -> np.ndarray:
    storage, offset, shape, strides = tensor
    content = load(storage)
    if len(content) != storage.size * storage.dtype.itemsize:
        raise ValueError(f"its part {storage.key[:80]!r} has {len(content)} bytes")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    fits = not count or (last < storage.size and count <= storage.size)
    if min((offset, *shape, *strides)) < 0 or not fits:
        raise ValueError(f"a tensor lies outside its part {storage.key[:80]!r}")
    flat = np.frombuffer(content, storage.dtype)[offset if count else 0 :]
    steps = tuple(stride * storage.dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False).copy()
