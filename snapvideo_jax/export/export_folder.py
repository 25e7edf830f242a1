"""EMA parameters of a run <-> a folder that needs neither the run nor this package to be read.

What is in the folder:

    model.safetensors   parameters by path, as "network/blocks/read/attention/q/kernel"; large
                        models in shards model-00001-of-00004.safetensors beside an index
    config.json         format, step, the run's config, fingerprint of what encodes text, dtype of
                        the parameters, the digest of each, and that of all these
    vocabulary.model    text -> tokens, where the run trained its text encoder
    torch_model.py      the model in PyTorch (export/torch_model.py)
    denoiser.stablehlo, sampler.stablehlo   programs that take the parameters (export/stablehlo.py)
    orbax/              where asked for: the parameters as Orbax saves them (export/orbax_folder.py)
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from snapvideo_jax import storage
from snapvideo_jax.errors import DataError, StorageError
from snapvideo_jax.export import orbax_folder
from snapvideo_jax.fields import STEP
from snapvideo_jax.files import safetensors
from snapvideo_jax.kinds import OneOf, Table, Text, Whole
from snapvideo_jax.training import leaf_digests
from snapvideo_jax.trees import leaves_by_name, path_name

FORMAT = 2  # 1 had no seal, and no fingerprint of a vocabulary
ENTRIES = {
    "format": Whole(1, FORMAT),
    "config": Table(),
    "step": STEP,
    "digests": Table(Whole(0, 2**32 - 1)),
}
DTYPES = ("float32", "bfloat16", "float16")
SHARD_BYTES = 5_000_000_000
TORCH_MODEL = Path(__file__).with_name("torch_model.py")  # imports torch, and nothing of ours


class Exported(NamedTuple):
    """What config.json says: the run's config, the step, and each parameter's digest.

    text: fingerprint of the text encoder, or of the vocabulary; "" takes any. dtype: in which
    float32 parameters are stored. files: name -> SHA-256 of each file that `write` was handed, and
    of each in orbax/.
    """

    config: dict
    step: int
    digests: dict[str, int]
    text: str = ""
    dtype: str = "float32"
    files: Mapping[str, str] = {}


def check_free(out: str | Path) -> None:
    """Raises StorageError unless there is nothing at `out`, or an empty folder."""
    storage.refuse_remote(out)
    try:
        if os.path.lexists(out) and any(Path(out).iterdir()):
            raise StorageError(f"{out} is not empty; name a folder that is not there yet")
    except OSError as error:
        raise StorageError(f"{out} is no folder to export to: {error.strerror}") from error


def write(
    out: str | Path,
    config: dict,
    step: int,
    params: Any,
    vocabulary: Path | None,
    shard_bytes: int = SHARD_BYTES,
    text: str = "",
    dtype: str = "float32",
    files: Mapping[str, bytes] | None = None,
    orbax: bool = False,
) -> None:
    """Writes the folder beside its place and renames it: there is all of it or nothing.

    Beside `params` themselves the host holds one of them at a time, or with `orbax` all of them.

    Args:
        out: the folder; it may be there if it is empty.
        config: the run's, as JSON has it.
        step: of the checkpoint that `params` are from.
        params: arrays on any sharding of this process' devices.
        vocabulary: the run's sentencepiece model, which is copied; None if it has none.
        shard_bytes: of parameters in a file at most; a larger one has a file of its own.
        text: fingerprint of the text encoder, or of the vocabulary; "" takes any.
        dtype: one of DTYPES, to which float32 parameters are rounded; others stay.
        files: name -> content of what else the folder holds.
        orbax: whether to write the parameters as a checkpoint of Orbax, too.

    Raises:
        StorageError: `out` is not empty, or cannot be written.
        DataError: the vocabulary cannot be read, or a parameter is too large for `dtype`.
    """
    check_free(out)
    out = Path(out).resolve()
    storage.make_folder(out.parent)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process of the same number
    try:
        unfinished.mkdir()
        if vocabulary is not None:
            (unfinished / "vocabulary.model").write_bytes(_content(vocabulary))
            config = config | {"data": config["data"] | {"vocabulary": ""}}  # the one beside it
        leaves = leaves_by_name(params)
        rounded = lambda name: _rounded(name, leaves[name], dtype)
        # Leaf by leaf: digests of a whole tree at once need nearly its memory.
        digests = {name: int(leaf_digests.digest(rounded(name))) for name in leaves}
        _write_params(unfinished, leaves, dtype, shard_bytes)
        for name, content in (files or {}).items():
            (unfinished / name).write_bytes(content)
        others = [unfinished / name for name in files or {}]
        if orbax:
            others += _write_orbax(unfinished / orbax_folder.NAME, params, dtype)
        sums = {path.relative_to(unfinished).as_posix(): _sha256(path) for path in others}
        about = {"format": FORMAT, **Exported(config, step, digests, text, dtype, sums)._asdict()}
        content = json.dumps(storage.sealed(about), indent=2) + "\n"
        (unfinished / "config.json").write_text(content)
        os.rename(unfinished, out)  # which replaces an empty folder and never a full one
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_export(folder: str | Path) -> bool:
    """Returns whether a folder holds exported parameters; a run's folder does not."""
    return any((Path(folder) / name).is_file() for name in (safetensors.WHOLE, safetensors.INDEX))


def read(folder: str | Path) -> Exported:
    """Reads the folder's config.json; DataError if it is not there, or not as it was written."""
    path = Path(folder) / "config.json"
    try:
        entries = storage.parse_object(storage.read(path), ENTRIES)
        if entries["format"] > 1:
            storage.check_seal(entries)
        entries.setdefault("text", "")
        entries.setdefault("dtype", "float32")
        entries.setdefault("files", {})
        others = {"text": Text(), "dtype": OneOf(DTYPES), "files": Table(Text(64))}
        storage.check_kinds(entries, others)
    except storage.Damaged as damage:
        raise DataError(f"{path} {damage}; export the run again") from damage
    return Exported(*(entries[field] for field in Exported._fields))


def load_params(folder: str | Path, abstract: Any) -> Any:
    """Loads the parameters; each device reads its part of each from the files.

    Args:
        folder: an exported one.
        abstract: their tree of ShapeDtypeStructs with shardings, as build.abstract_params makes it.

    Raises:
        DataError: one line; files are missing, cut short or not safetensors, a parameter is
            missing, left over, or of another shape or dtype (all found before any is read), or
            its bits are not those that were exported.
    """
    exported, tensors = read(folder), safetensors.open_folder(folder)
    _check_same(Path(folder), tensors, leaves_by_name(abstract), exported.dtype)

    def place(path, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path_name(path)
        file, info = tensors[name]
        part = lambda index: safetensors.read(file, info, index)
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        array = jax.make_array_from_callback(leaf.shape, sharding, part)
        if exported.digests.get(name) != int(leaf_digests.digest(array)):
            raise DataError(f"{file}: {name} failed its checksum; export the run again")
        return array.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(place, abstract)


def torch_model() -> dict[str, bytes]:
    """Returns the model in PyTorch as a file of the folder: name -> content."""
    return {TORCH_MODEL.name: TORCH_MODEL.read_bytes()}


def stored(params: Any, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> shape and dtype of parameters as `write` stores them."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, _stored_dtype(leaf, dtype))
        for name, leaf in leaves_by_name(params).items()
    }


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _stored_dtype(leaf: jax.Array | jax.ShapeDtypeStruct, dtype: str) -> np.dtype:
    return jnp.dtype(dtype) if leaf.dtype == jnp.float32 else leaf.dtype


def _rounded(name: str, leaf: Shaped[Array, "..."], dtype: str) -> Shaped[Array, "..."]:
    """Rounds a float32 parameter to `dtype`; raises DataError where it is too large for that."""
    stored = leaf.astype(_stored_dtype(leaf, dtype))
    if dtype == "float16" and bool(jnp.any(jnp.isfinite(leaf) & ~jnp.isfinite(stored))):
        raise DataError(f"{name} holds numbers that float16 does not; use --dtype=bfloat16")
    return stored


def _write_params(
    folder: Path, leaves: Mapping[str, Shaped[Array, "..."]], dtype: str, shard_bytes: int
) -> None:
    """Writes one file, or shards and the index that says which holds what."""
    dtypes = {name: _stored_dtype(leaf, dtype) for name, leaf in leaves.items()}
    sizes = {name: leaf.size * dtypes[name].itemsize for name, leaf in leaves.items()}
    shards, places = _shards(sizes, shard_bytes), {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else safetensors.WHOLE
        tensors = {name: (leaves[name].shape, dtypes[name]) for name in names}
        content = lambda name: _on_host(_rounded(name, leaves[name], dtype))
        safetensors.write(folder / file, tensors, content)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / safetensors.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_orbax(folder: Path, params: Any, dtype: str) -> list[Path]:
    """Writes a checkpoint of Orbax, and returns its files."""
    on_host = lambda path, leaf: _on_host(_rounded(path_name(path), leaf, dtype))
    orbax_folder.write(folder, jax.tree_util.tree_map_with_path(on_host, params))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Cuts the names, in their order, where a file would outgrow `shard_bytes`."""
    shards, total = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and total + size > shard_bytes:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += size
    return shards


def _on_host(leaf: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns the values, by a copy: an array keeps those of the host beside its own."""
    return np.asarray(jnp.copy(leaf))


def _check_same(
    folder: Path,
    tensors: Mapping[str, tuple[Path, safetensors.TensorInfo]],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    dtype: str,
) -> None:
    """Raises DataError for the first parameter that is missing, left over, or of another kind."""
    for name, leaf in expected.items():
        if name not in tensors:
            raise DataError(f"{folder} holds no {name}; its weights are of another model")
        file, info = tensors[name]
        stored = _stored_dtype(leaf, dtype)
        if (info.shape, info.dtype) != (leaf.shape, stored):
            raise DataError(
                f"{file}: {name} is {info.dtype}{info.shape} and must be {stored}{leaf.shape}; "
                "its weights are of another model"
            )
    for name, (file, _) in tensors.items():
        if name not in expected:
            raise DataError(f"{file} holds {ascii(name)[:80]}, which the model does not have")
