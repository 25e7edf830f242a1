"""Weights of published networks: a file that users have -> the parameters of a Flax module.

Safetensors, npz, and torch's archives (read without torch, see files/torch_archive.py). The file's
sha256 comes with the parameters, for the report; names and shapes must fit exactly, so a file of
another network, of another port of it, or cut short is one clear line.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Shaped

from snapvideo_jax.errors import DataError, reason
from snapvideo_jax.files import safetensors, torch_archive

# Last part of a parameter's path here -> in torch's names.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
MIN_DIGITS = 8  # of a sha256 that are enough to check; torch's own file names have so many

Tensors = dict[str, np.ndarray]


class WeightFile(NamedTuple):
    """The tensors of a file by torch's names, and its digest."""

    path: Path
    sha256: str
    tensors: Tensors


class Weights(NamedTuple):
    """Parameters as `module.apply` takes them, and what the report says of their file."""

    params: Any
    file: str
    sha256: str


def load(path: str | Path, module: nn.Module, *inputs: Any, sha256: str | None = None) -> Weights:
    """Reads a file into the parameters of `module`: `open_file`, then `fit`."""
    return fit(open_file(path, sha256), module, *inputs)


def open_file(path: str | Path, sha256: str | None = None) -> WeightFile:
    """Reads a file of weights.

    Args:
        path: .safetensors, .npz, or what torch saved (any other suffix).
        sha256: of the file, whole or its first 8 or more digits; None: any file.

    Raises:
        DataError: one line, where the file is missing or damaged or has another sha256.
    """
    path = Path(path)
    digest = _digest(path)
    if sha256 is not None:
        _check_digest(path, digest, sha256)
    return WeightFile(path, digest, read(path))


def fit(
    file: WeightFile,
    module: nn.Module,
    *inputs: Any,
    ignored: tuple[str, ...] = ("num_batches_tracked",),
) -> Weights:
    """Makes the tensors of a file the parameters of `module`, in float32.

    A module's path, joined with dots, is the name in the file; see `torch_name`.

    Args:
        file: what `open_file` read; its tensors may be renamed in between.
        module: the network.
        inputs: arrays or jax.ShapeDtypeStruct that its call takes.
        ignored: endings of names in the file that the network does without.

    Raises:
        DataError: one line, where a tensor is missing, left over, of another shape or not finite.
    """
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    leaves: dict[tuple[str, ...], Any] = flatten_dict(abstract)  # pyright: ignore
    fitted = {leaf: _fit_leaf(file, leaf, shape=leaves[leaf].shape) for leaf in leaves}
    names = {name for name in file.tensors if not name.endswith(ignored)}
    extra = sorted(names - set(map(torch_name, leaves)))
    if extra:
        network = type(module).__name__
        raise DataError(f"{file.path}: holds {extra[0][:80]!r}, which {network} has not")
    params = jax.device_put(unflatten_dict(fitted))  # here, and not again with every batch
    return Weights({"params": params}, file=file.path.name, sha256=file.sha256)


def read(path: Path) -> Tensors:
    """Returns every tensor of a file; raises DataError, one line, where it cannot be read."""
    if path.suffix == ".safetensors":
        infos = safetensors.open_file(path)
        return {name: safetensors.read(path, info) for name, info in infos.items()}
    if path.suffix == ".npz":
        return _read_npz(path)
    return torch_archive.read(path)


def _read_npz(path: Path) -> Tensors:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        detail = reason(error)[:200]
        raise DataError(f"{path}: cannot be read as npz ({detail}); copy it again") from error


def torch_name(leaf: tuple[str, ...]) -> str:
    """Returns a parameter's path as torch writes it: ("block", "conv", "kernel") -> "...weight"."""
    *path, last = leaf
    return ".".join([*path, LEAVES.get(last, last)])


def to_torch(leaf: tuple[str, ...], array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns a parameter as torch holds it: kernels [..., I, O] become [O, I, ...]."""
    return np.moveaxis(array, (-1, -2), (0, 1)) if leaf[-1] == "kernel" else array


def _from_torch(
    leaf: tuple[str, ...], array: Shaped[np.ndarray, "..."]
) -> Shaped[np.ndarray, "..."]:
    """Inverts `to_torch`: kernels [O, I, ...] become [..., I, O]."""
    return np.moveaxis(array, (0, 1), (-1, -2)) if leaf[-1] == "kernel" else array


def _fit_leaf(file: WeightFile, leaf: tuple[str, ...], *, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor of the file as the parameter `leaf`, checked."""
    path, name = file.path, torch_name(leaf)
    if name not in file.tensors:
        raise DataError(f"{path}: lacks {name!r}; is it a file of this network?")
    array = file.tensors[name]
    expected = to_torch(leaf, np.empty(shape, np.bool_)).shape
    if array.shape != expected:
        raise DataError(f"{path}: {name!r} is {array.shape}, expected {expected}; wrong network?")
    array = np.ascontiguousarray(_from_torch(leaf, array).astype(np.float32))
    if not np.isfinite(array).all():
        raise DataError(f"{path}: {name!r} has numbers that are not finite; copy it again")
    return array


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the weights {path}: {error.strerror}") from error


def _check_digest(path: Path, digest: str, expected: str) -> None:
    if len(expected) < MIN_DIGITS:
        raise DataError(f"a sha256 of {len(expected)} digits checks nothing; give 8 or more")
    if not digest.startswith(expected.lower()):
        raise DataError(f"{path}: has the sha256 {digest}, expected {expected}; get the file again")
