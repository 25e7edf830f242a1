"""Published T5 encoders, read without torch: Hugging Face's safetensors and T5X's Orbax folders.

Names, shapes and dtypes are checked from headers before any data are read, and each device reads
its own part of each tensor, so an encoder of 11B never has to fit one host. Pickles are refused.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import safetensors, t5_config, t5_names
from snapvideo_jax.files.safetensors import INDEX, WHOLE
from snapvideo_jax.files.t5_config import REMEDY, T5Config
from snapvideo_jax.files.t5_names import HUGGING_FACE, NAMES, T5X

ROOTS = ("", "target/", "params/", "target/params/")  # T5X's tree within the saved one

DTYPES = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16")))
ORBAX = "_METADATA"  # what Orbax writes into each folder
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
IGNORED = ("decoder.", "lm_head.")  # tensors of Hugging Face's files that no encoder has

Flat = dict[str, Any]  # parameter, with the number of its layer -> something about it


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint whose headers were checked; `open_weights` makes it, `load` reads it.

    leaves: shape and dtype of each parameter in the files. read: shape, dtype and sharding of each
    parameter -> its values.
    """

    path: Path
    config: T5Config
    leaves: Flat
    read: Callable[[Flat], Flat]

    def abstract(self) -> Any:
        """Returns the parameters' tree of jax.ShapeDtypeStruct, with the dtypes of the files."""
        return unflatten_dict(self.leaves, sep="/")

    def load(self, abstract: Any = None) -> Any:
        """Reads the parameters of the encoder that `config` describes.

        Args:
            abstract: the tree of `abstract()`; each leaf has the dtype and, where it is to be
                split, the sharding of the result. None: as in the files, on the first device.

        Raises:
            DataError: one line, where the files changed since they were opened, or a number is
                not finite.
            ValueError: `abstract` has other names or shapes than the checkpoint.
        """
        leaves = self.leaves if abstract is None else _flat(abstract)
        if {n: x.shape for n, x in leaves.items()} != {n: x.shape for n, x in self.leaves.items()}:
            raise ValueError(f"the tree `abstract` is not that of {self.path}")
        params = self.read({name: _with_sharding(leaf) for name, leaf in leaves.items()})
        broken = [name for name, finite in _finite(params).items() if not finite]
        if broken:
            raise DataError(f"{self.path}: {broken[0]} has numbers that are not finite; {REMEDY}")
        return unflatten_dict(params, sep="/")


def _with_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Puts a leaf without a sharding on the first device."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _flat(tree: Any) -> Flat:
    leaves: Any = flatten_dict(tree)
    return {"/".join(map(str, path)): leaf for path, leaf in leaves.items()}


@jax.jit
def _finite(params: Flat) -> Flat:
    return {name: jnp.isfinite(leaf).all() for name, leaf in params.items()}


def open_weights(folder: str | Path) -> Weights:
    """Checks the headers of a checkpoint; reads no weights yet, and never those of a decoder.

    Args:
        folder: of Hugging Face (config.json beside model.safetensors, or beside
            model.safetensors.index.json and the files it names), or a T5X tree saved by Orbax.

    Raises:
        DataError: one line, where files are missing, damaged or pickles, or a tensor is missing,
            left over, or not of the expected shape and a float dtype.
    """
    folder = Path(folder)
    if (folder / ORBAX).is_file():
        return _open_t5x(folder)
    if (folder / WHOLE).is_file() or (folder / INDEX).is_file():
        return _open_hugging_face(folder)
    for file in [folder] if folder.is_file() else sorted(folder.glob("*")):
        if file.suffix in PICKLES:
            raise DataError(
                f"{file}: is a pickle, which is never loaded; expected {WHOLE}: write it once "
                "with transformers' save_pretrained"
            )
    raise DataError(
        f"{folder}: holds neither {WHOLE} nor {INDEX} (Hugging Face) nor {ORBAX} (T5X, saved by "
        "Orbax); give the folder of a T5 checkpoint"
    )


class _Tensor(NamedTuple):
    """A tensor of a checkpoint; safetensors files say in `info` where its bytes are."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    info: safetensors.TensorInfo | None = None


def _check(
    folder: Path, config: T5Config, column: int, tensors: Mapping[str, _Tensor]
) -> tuple[dict[str, str], Flat]:
    """Returns the name in the files, and the shape and dtype, of each parameter.

    Raises DataError where a tensor is missing, left over or does not fit.
    """
    names = {}
    encoder = f"a {'gated' if config.gated else 'ReLU'} encoder of {config.layers} layers"
    for name, file_name in t5_names.names(config, column):
        if file_name not in tensors:  # before a forged number of layers makes this loop long
            raise DataError(
                f"{folder}: found no tensor {file_name}, expected for {encoder}; {REMEDY}"
            )
        names[name] = file_name
    extra = sorted(set(tensors) - set(names.values()))
    if extra:
        raise DataError(
            f"{tensors[extra[0]].file}: found the tensor {extra[0][:80]!r}, expected none such in "
            f"{encoder}; give an unchanged T5 of version 1.0 or 1.1"
        )
    leaves = {}
    for name, ours in t5_config.shapes(config).items():
        tensor = tensors[names[name]]
        shape = ours[::-1] if t5_names.is_transposed(name, column) else ours
        if tensor.shape != shape or tensor.dtype not in DTYPES:
            raise DataError(
                f"{tensor.file}: tensor {names[name]} is {tensor.dtype} {tensor.shape}, expected "
                f"float32, bfloat16 or float16 {shape}; give an unchanged T5 checkpoint"
            )
        leaves[name] = jax.ShapeDtypeStruct(ours, tensor.dtype)
    return names, leaves


def _open_hugging_face(folder: Path) -> Weights:
    config = t5_config.read_config(folder / "config.json")
    tensors = {
        name: _Tensor(file, info.shape, info.dtype, info)
        for name, (file, info) in safetensors.open_folder(folder).items()
        if not name.startswith(IGNORED)
    }
    tied = tensors.pop("encoder.embed_tokens.weight", None)  # another name of the same numbers
    if tied is not None:
        tensors.setdefault("shared.weight", tied)
    names, leaves = _check(folder, config, HUGGING_FACE, tensors)

    def read(leaves: Flat) -> Flat:
        return {name: _read(tensors[names[name]], name, leaf) for name, leaf in leaves.items()}

    return Weights(folder, config, leaves=leaves, read=read)


def _read(tensor: _Tensor, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads each device's part of a tensor of a safetensors file."""

    def part(index: Any) -> np.ndarray:
        assert tensor.info is not None
        if t5_names.is_transposed(name, HUGGING_FACE):
            array = safetensors.read(tensor.file, tensor.info, index[::-1]).T
        else:
            array = safetensors.read(tensor.file, tensor.info, index)
        return array.astype(leaf.dtype, copy=False)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def _open_t5x(folder: Path) -> Weights:
    try:
        metadata: Any = ocp.PyTreeCheckpointer().metadata(folder.absolute())
        saved = _flat(metadata.item_metadata.tree)
    except Exception as error:  # orbax raises many kinds for damaged folders
        raise _damaged(folder, error) from error
    root = next((r for r in ROOTS if r + NAMES["token_table/embedding"][T5X] in saved), "")
    tensors = {
        name.removeprefix(root): _Tensor(folder, tuple(leaf.shape), np.dtype(leaf.dtype))
        for name, leaf in saved.items()
        if name.startswith((f"{root}encoder/", f"{root}token_embedder/"))
    }
    config = _t5x_config(folder, tensors)
    names, leaves = _check(folder, config, T5X, tensors)
    sources = {name: root + file_name for name, file_name in names.items()}
    read = functools.partial(_restore, folder, sources)
    return Weights(folder, config, leaves=leaves, read=read)


def _damaged(folder: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{folder}: Orbax cannot read it ({reason}); {REMEDY}")


def _t5x_config(folder: Path, tensors: Mapping[str, _Tensor]) -> T5Config:
    """Returns the sizes that the tensors' shapes imply: T5X saves no config beside them."""

    def matrix(name: str) -> tuple[int, ...]:
        shape = tensors[name].shape if name in tensors else None
        if shape is None or len(shape) != 2 or 0 in shape:
            raise DataError(f"{folder}: tensor {name} is {shape}, expected a matrix; {REMEDY}")
        return shape

    gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
    heads = matrix("encoder/relpos_bias/rel_embedding")[0]
    vocabulary_size, channels = matrix("token_embedder/embedding")
    layers = {name.split("/")[1] for name in tensors if name.startswith("encoder/layers_")}
    return T5Config(
        vocabulary_size=vocabulary_size,
        channels=channels,
        heads=heads,
        head_channels=max(1, matrix("encoder/layers_0/attention/query/kernel")[1] // heads),
        hidden=matrix(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        layers=len(layers),
        gated=gated,
    )


def _restore(folder: Path, sources: dict[str, str], leaves: Flat) -> Flat:
    """Reads parameters with Orbax; the transposed one goes through the host."""
    transposed = [name for name in leaves if t5_names.is_transposed(name, T5X)]
    args = {
        name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        if name in transposed
        else ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
        for name, leaf in leaves.items()
    }
    tree = lambda values: unflatten_dict({sources[n]: x for n, x in values.items()}, sep="/")
    request = ocp.args.PyTreeRestore(tree(leaves), restore_args=tree(args), partial_restore=True)
    try:
        restored = _flat(ocp.PyTreeCheckpointer().restore(folder.absolute(), args=request))
    except Exception as error:  # as above
        raise _damaged(folder, error) from error
    params = {name: restored[source] for name, source in sources.items()}
    for name in transposed:
        leaf, part = leaves[name], params[name].T.__getitem__
        params[name] = jax.make_array_from_callback(leaf.shape, leaf.sharding, part)
    return params
