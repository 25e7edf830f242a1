"""Published T5 encoders, read without torch: Hugging Face's safetensors and T5X's Orbax folders.

Names, shapes and dtypes are checked from headers before any data are read, and each device reads
its own part of each tensor, so an encoder of 11B never has to fit one host. Pickles are refused.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import safetensors
from snapvideo_jax.files.safetensors import INDEX, WHOLE

# Parameter of T5Encoder -> its name in Hugging Face's files, and in T5X's trees.
NAMES = {
    "token_table/embedding": ("shared.weight", "token_embedder/embedding"),
    "position_bias": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder/relpos_bias/rel_embedding",  # [A, buckets], ours is [buckets, A]
    ),
    "final_norm/scale": ("encoder.final_layer_norm.weight", "encoder/encoder_norm/scale"),
}
# The same for layer {}, whose names begin as in LAYERS. Hugging Face's kernels are [out, in].
LAYERS = ("encoder.block.{}.layer.", "encoder/layers_{}/")
LAYER = {
    "attention{}/norm/scale": ("0.layer_norm.weight", "pre_attention_layer_norm/scale"),
    "attention{}/q/kernel": ("0.SelfAttention.q.weight", "attention/query/kernel"),
    "attention{}/k/kernel": ("0.SelfAttention.k.weight", "attention/key/kernel"),
    "attention{}/v/kernel": ("0.SelfAttention.v.weight", "attention/value/kernel"),
    "attention{}/o/kernel": ("0.SelfAttention.o.weight", "attention/out/kernel"),
    "feed_forward{}/norm/scale": ("1.layer_norm.weight", "pre_mlp_layer_norm/scale"),
    "feed_forward{}/down/kernel": ("1.DenseReluDense.wo.weight", "mlp/wo/kernel"),
}
UNGATED = {"feed_forward{}/up/kernel": ("1.DenseReluDense.wi.weight", "mlp/wi/kernel")}
GATED = {
    "feed_forward{}/gate/kernel": ("1.DenseReluDense.wi_0.weight", "mlp/wi_0/kernel"),
    "feed_forward{}/up/kernel": ("1.DenseReluDense.wi_1.weight", "mlp/wi_1/kernel"),
}
HUGGING_FACE, T5X = 0, 1  # columns of these tables
ROOTS = ("", "target/", "params/", "target/params/")  # of T5X's tree in the saved one

# Field of T5Config -> of config.json.
FIELDS = {
    "vocabulary_size": "vocab_size",
    "channels": "d_model",
    "heads": "num_heads",
    "head_channels": "d_kv",
    "hidden": "d_ff",
    "layers": "num_layers",
}
BUCKETS = 32  # of relative positions
# What T5Encoder fixes; a config.json may repeat it and must not differ.
FIXED = {
    "model_type": "t5",
    "relative_attention_num_buckets": BUCKETS,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
ACTIVATIONS = {"relu": False, "gated-gelu": True}  # feed_forward_proj -> gated
MAX_SIZE = 2**20  # of any field; no encoder is larger
DTYPES = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16")))
ORBAX = "_METADATA"  # what Orbax writes into each folder
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
UNREAD = ("decoder.", "lm_head.")  # of Hugging Face's names
AGAIN = "copy the whole checkpoint again"

Flat = dict[str, Any]  # parameter, with the number of its layer -> something about it


class T5Config(NamedTuple):
    """Sizes of an encoder, as T5Encoder names them."""

    vocabulary_size: int
    channels: int
    heads: int
    head_channels: int
    hidden: int
    layers: int
    gated: bool


def shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of `models.t5.T5Encoder`, by name."""
    E, inner = config.channels, config.heads * config.head_channels
    layer = {
        "attention{}/norm/scale": (E,),
        "attention{}/q/kernel": (E, inner),
        "attention{}/k/kernel": (E, inner),
        "attention{}/v/kernel": (E, inner),
        "attention{}/o/kernel": (inner, E),
        "feed_forward{}/norm/scale": (E,),
        "feed_forward{}/down/kernel": (config.hidden, E),
        "feed_forward{}/up/kernel": (E, config.hidden),
    }
    if config.gated:
        layer["feed_forward{}/gate/kernel"] = (E, config.hidden)
    return {
        "token_table/embedding": (config.vocabulary_size, E),
        "position_bias": (BUCKETS, config.heads),
        **{name.format(i): shape for i in range(config.layers) for name, shape in layer.items()},
        "final_norm/scale": (E,),
    }


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint whose headers were checked; `open_weights` makes it, `load` reads it.

    stored: shape and dtype of each parameter; fetch: those wanted, placed -> their values.
    """

    path: Path
    config: T5Config
    stored: Flat
    fetch: Callable[[Flat], Flat]

    def abstract(self) -> Any:
        """The parameters' tree of jax.ShapeDtypeStruct, with the dtypes they are stored in."""
        return unflatten_dict(self.stored, sep="/")

    def load(self, abstract: Any = None) -> Any:
        """The parameters of the encoder that `config` describes.

        Args:
            abstract: the tree of `abstract()`, each leaf with the dtype and, where it is to be
                split, the sharding that is wanted. None: as stored, on the first device.

        Raises:
            DataError: one line, where the files changed since they were opened, or a number is
                not finite.
            ValueError: `abstract` has other names or shapes than the checkpoint.
        """
        wanted = self.stored if abstract is None else _flat(abstract)
        if {n: x.shape for n, x in wanted.items()} != {n: x.shape for n, x in self.stored.items()}:
            raise ValueError(f"the tree asked for is not that of {self.path}")
        params = self.fetch({name: _placed(leaf) for name, leaf in wanted.items()})
        broken = [name for name, finite in _finite(params).items() if not finite]
        if broken:
            raise DataError(f"{self.path}: {broken[0]} has numbers that are not finite; {AGAIN}")
        return unflatten_dict(params, sep="/")


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _flat(tree: Any) -> Flat:
    found: Any = flatten_dict(tree)
    return {"/".join(map(str, path)): leaf for path, leaf in found.items()}


@jax.jit
def _finite(params: Flat) -> Flat:
    return {name: jnp.isfinite(leaf).all() for name, leaf in params.items()}


def open_weights(folder: str | Path) -> Weights:
    """Checks a checkpoint's headers; reads no weights yet.

    Args:
        folder: of Hugging Face (config.json beside model.safetensors, or beside
            model.safetensors.index.json and the files it names), or a T5X tree saved by Orbax.
            Decoders are left unread.

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


def _names(config: T5Config, column: int) -> Iterator[tuple[str, str]]:
    """Parameter and its name in the checkpoint, layer by layer."""
    yield from ((name, there[column]) for name, there in NAMES.items())
    for i in range(config.layers):
        for name, there in (LAYER | (GATED if config.gated else UNGATED)).items():
            yield name.format(i), LAYERS[column].format(i) + there[column]


def _check(
    folder: Path, config: T5Config, column: int, tensors: Mapping[str, _Tensor]
) -> tuple[dict[str, str], Flat]:
    """Names in the checkpoint, and shape and dtype, of each parameter; DataError if one misfits."""
    names = {}
    what = f"a {'gated' if config.gated else 'ReLU'} encoder of {config.layers} layers"
    for name, there in _names(config, column):
        if there not in tensors:  # before a forged number of layers makes this loop long
            raise DataError(f"{folder}: found no tensor {there}, expected for {what}; {AGAIN}")
        names[name] = there
    extra = sorted(set(tensors) - set(names.values()))
    if extra:
        raise DataError(
            f"{tensors[extra[0]].file}: found the tensor {extra[0][:80]!r}, expected none such in "
            f"{what}; give an unchanged T5 of version 1.0 or 1.1"
        )
    stored = {}
    for name, ours in shapes(config).items():
        tensor = tensors[names[name]]
        shape = ours[::-1] if _turned(name, column) else ours
        if tensor.shape != shape or tensor.dtype not in DTYPES:
            raise DataError(
                f"{tensor.file}: tensor {names[name]} is {tensor.dtype} {tensor.shape}, expected "
                f"float32, bfloat16 or float16 {shape}; give an unchanged T5 checkpoint"
            )
        stored[name] = jax.ShapeDtypeStruct(ours, tensor.dtype)
    return names, stored


def _turned(name: str, column: int) -> bool:
    """Whether the checkpoint keeps the parameter transposed."""
    return name == "position_bias" if column == T5X else name.endswith("kernel")


def _open_hugging_face(folder: Path) -> Weights:
    config = _config(folder / "config.json")
    tensors = {
        name: _Tensor(file, info.shape, info.dtype, info)
        for name, (file, info) in safetensors.open_folder(folder).items()
        if not name.startswith(UNREAD)
    }
    tied = tensors.pop("encoder.embed_tokens.weight", None)  # another name of the same numbers
    if tied is not None:
        tensors.setdefault("shared.weight", tied)
    names, stored = _check(folder, config, HUGGING_FACE, tensors)

    def fetch(wanted: Flat) -> Flat:
        return {name: _read(tensors[names[name]], name, leaf) for name, leaf in wanted.items()}

    return Weights(folder, config, stored, fetch)


def _read(tensor: _Tensor, name: str, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """Each device's part of a tensor of a safetensors file."""

    def part(index: Any) -> np.ndarray:
        assert tensor.info is not None
        if _turned(name, HUGGING_FACE):
            array = safetensors.read(tensor.file, tensor.info, index[::-1]).T
        else:
            array = safetensors.read(tensor.file, tensor.info, index)
        return array.astype(wanted.dtype, copy=False)

    return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)


def _config(path: Path) -> T5Config:
    found = _json(path)
    for name, value in FIXED.items():
        if found.get(name, value) != value:
            reason = f"{name} is {found[name]!r}, expected {value!r}"
            raise DataError(f"{path}: {reason}; give a T5 of version 1.0 or 1.1")
    sizes: dict[str, Any] = {name: found.get(field) for name, field in FIELDS.items()}
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size <= MAX_SIZE:
            raise DataError(
                f"{path}: {FIELDS[name]} is {size!r}, expected a whole number of 1 to {MAX_SIZE}; "
                f"{AGAIN}"
            )
    activation = str(found.get("feed_forward_proj", "relu"))
    if activation not in ACTIVATIONS:
        raise DataError(
            f"{path}: feed_forward_proj is {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            "; give a T5 of version 1.0 or 1.1"
        )
    return T5Config(**sizes, gated=ACTIVATIONS[activation])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no JSON object; {AGAIN}")
    return found


def _open_t5x(folder: Path) -> Weights:
    try:
        metadata: Any = ocp.PyTreeCheckpointer().metadata(folder.absolute())
        found = _flat(metadata.item_metadata.tree)
    except Exception as error:  # orbax raises many kinds for damaged folders
        raise _damaged(folder, error) from error
    root = next((r for r in ROOTS if r + NAMES["token_table/embedding"][T5X] in found), "")
    tensors = {
        name.removeprefix(root): _Tensor(folder, tuple(leaf.shape), np.dtype(leaf.dtype))
        for name, leaf in found.items()
        if name.startswith((f"{root}encoder/", f"{root}token_embedder/"))
    }
    config = _t5x_config(folder, tensors)
    names, stored = _check(folder, config, T5X, tensors)
    sources = {name: root + there for name, there in names.items()}
    return Weights(folder, config, stored, functools.partial(_restore, folder, sources))


def _damaged(folder: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{folder}: Orbax cannot read it ({reason}); {AGAIN}")


def _t5x_config(folder: Path, tensors: Mapping[str, _Tensor]) -> T5Config:
    """Sizes of the encoder, from the shapes of its tensors: T5X saves no config beside them."""

    def shape(name: str) -> tuple[int, ...]:
        found = tensors[name].shape if name in tensors else None
        if found is None or len(found) != 2 or 0 in found:
            raise DataError(f"{folder}: tensor {name} is {found}, expected a matrix; {AGAIN}")
        return found

    gated = "encoder/layers_0/mlp/wi_0/kernel" in tensors
    heads = shape("encoder/relpos_bias/rel_embedding")[0]
    vocabulary_size, channels = shape("token_embedder/embedding")
    layers = {name.split("/")[1] for name in tensors if name.startswith("encoder/layers_")}
    return T5Config(
        vocabulary_size,
        channels,
        heads,
        head_channels=max(1, shape("encoder/layers_0/attention/query/kernel")[1] // heads),
        hidden=shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        layers=len(layers),
        gated=gated,
    )


def _restore(folder: Path, sources: dict[str, str], wanted: Flat) -> Flat:
    """The wanted parameters, read by Orbax; the transposed one goes through the host."""
    straight = {n: x for n, x in wanted.items() if not _turned(n, T5X)}
    args = {
        name: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
        if name in straight
        else ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype)
        for name, x in wanted.items()
    }
    tree = lambda leaves: unflatten_dict({sources[n]: x for n, x in leaves.items()}, sep="/")
    request = ocp.args.PyTreeRestore(tree(wanted), restore_args=tree(args), partial_restore=True)
    try:
        restored = _flat(ocp.PyTreeCheckpointer().restore(folder.absolute(), args=request))
    except Exception as error:  # as above
        raise _damaged(folder, error) from error
    params = {name: restored[there] for name, there in sources.items()}
    for name, leaf in wanted.items():
        if name not in straight:
            place = params[name].T.__getitem__
            params[name] = jax.make_array_from_callback(leaf.shape, leaf.sharding, place)
    return params
