"""The sizes of a T5 encoder, as Hugging Face's config.json has them, and its parameters' shapes."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax.errors import DataError

BUCKETS = 32  # of relative positions
# Field of T5Config -> of config.json.
FIELDS = {
    "vocabulary_size": "vocab_size",
    "channels": "d_model",
    "heads": "num_heads",
    "head_channels": "d_kv",
    "hidden": "d_ff",
    "layers": "num_layers",
}
# T5Encoder fixes these fields of config.json: they may be absent, but not differ.
FIXED = {
    "model_type": "t5",
    "relative_attention_num_buckets": BUCKETS,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
ACTIVATIONS = {"relu": False, "gated-gelu": True}  # feed_forward_proj -> gated
MAX_SIZE = 2**20  # of any field; no encoder is larger
REMEDY = "copy the whole checkpoint again"


class T5Config(NamedTuple):
    """The sizes of an encoder, as T5Encoder names them."""

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


def read_config(path: Path) -> T5Config:
    """Reads config.json; raises DataError, one line, where it is damaged or of another model."""
    fields = _json(path)
    for name, value in FIXED.items():
        if fields.get(name, value) != value:
            reason = f"{name} is {fields[name]!r}, expected {value!r}"
            raise DataError(f"{path}: {reason}; give a T5 of version 1.0 or 1.1")
    sizes: dict[str, Any] = {name: fields.get(field) for name, field in FIELDS.items()}
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size <= MAX_SIZE:
            raise DataError(
                f"{path}: {FIELDS[name]} is {size!r}, expected a whole number of 1 to {MAX_SIZE}; "
                f"{REMEDY}"
            )
    activation = str(fields.get("feed_forward_proj", "relu"))
    if activation not in ACTIVATIONS:
        raise DataError(
            f"{path}: feed_forward_proj is {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            "; give a T5 of version 1.0 or 1.1"
        )
    return T5Config(**sizes, gated=ACTIVATIONS[activation])


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}: is no JSON object; {REMEDY}")
    return fields
