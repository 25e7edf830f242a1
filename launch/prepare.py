"""Stores the text states of a data set's captions, so that training never runs the T5 encoder.

  python -m launch.prepare embed --config=configs/fit_500m.py --config.data.path=DIR \\
      --t5=T5 --out=STATES

--t5 is the folder of a published encoder, version 1.0 (the paper's T5-11B) or 1.1, in either form:

  Hugging Face  config.json and model.safetensors, or model.safetensors.index.json and its shards.
                A folder of pickles (pytorch_model.bin) is refused; write it as safetensors once:
                T5EncoderModel.from_pretrained("T5").save_pretrained("T5"), with transformers.
  T5X           a folder that Orbax saved (with _METADATA).

--tokenizer is its sentencepiece model; by default spiece.model in that folder.

The encoder is split over all devices, and so is each batch; products run in --config.model.dtype.
States are bfloat16, of real tokens alone: 2 KB a token for T5-11B. Ctrl-C loses at most the
batch in work; the same command goes on, and adds the captions that a grown data set has got since.
Train with --config.model.text_encoder.source=stored --config.data.text_states=STATES.
Exit codes: 0 done, 2 bad flags or config, 3 bad data or weights, 5 --out cannot be written.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

from launch import main
from snapvideo_jax import build, checks, storage
from snapvideo_jax.data import embeddings
from snapvideo_jax.data.text import Tokenizer
from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.models import t5, t5_weights
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules
from snapvideo_jax.training import checkpoint

main.define_config()
T5 = flags.DEFINE_string("t5", None, "Folder of the T5 encoder's weights.", required=True)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Its sentencepiece model; default: spiece.model in the folder --t5."
)
OUT = flags.DEFINE_string(
    "out", None, "Folder for the states; made where there is none.", required=True
)
BATCH = flags.DEFINE_integer("batch_size", 64, "Captions encoded at a time.", lower_bound=1)

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


def run() -> None:
    """Flags in, states out."""
    config = flags.FLAGS.config
    config.data.text_states = OUT.value  # what the config would read is what is made here
    checks.check(config)
    mesh = meshes.make_mesh({"data": 1, "fsdp": -1, "group": 1, "tensor": 1}, jax.devices())
    meshes.check_batch(mesh, "--batch_size", BATCH.value)
    captions = build.source(config, lambda path, why: main.say(f"{path}: {why}")).captions()
    vocabulary = Path(TOKENIZER.value or Path(T5.value) / "spiece.model")
    weights, tokenizer = t5_weights.open_weights(T5.value), Tokenizer(vocabulary)
    check_vocabulary(tokenizer, vocabulary, weights)
    storage.make_folder(OUT.value)  # found out before the weights are loaded, which takes long
    main.say(f"loading {T5.value} onto {mesh.size} {jax.devices()[0].platform} device(s)")
    dtype = build.DTYPES[config.model.dtype]
    params = weights.load(placed(weights.abstract(), mesh, dtype))
    made_by = embeddings.fingerprint(
        checkpoint.digests(params), vocabulary.read_bytes(), config.model.dtype
    )
    length = config.data.text_length
    encoder = compiled(t5_weights.encoder(weights.config, dtype), mesh)

    def encode(batch: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = tokenizer(batch, length)
        return np.asarray(encoder(params, ids, mask)), mask

    writer = embeddings.Writer(OUT.value, made_by, weights.config.channels, length)
    with contextlib.closing(writer):
        store(writer, captions, encode, BATCH.value)


def check_vocabulary(tokenizer: Tokenizer, path: Path, weights: t5_weights.Weights) -> None:
    """DataError for a vocabulary with ids that the encoder does not embed."""
    pieces, rows = tokenizer.vocabulary_size, weights.config.vocabulary_size
    if pieces > rows:
        raise DataError(
            f"{path}: has {pieces} pieces, and {weights.path} embeds {rows}; give --tokenizer the "
            "encoder's own sentencepiece model"
        )


def placed(abstract: Any, mesh: Mesh, dtype: jnp.dtype) -> Any:
    """Splits each parameter's largest axis that divides over fsdp; kernels and table in `dtype`.

    Norms and position biases are float32: they are small, and `dtype` would only round them.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        divides = [size if size % mesh.shape["fsdp"] == 0 else 0 for size in leaf.shape]
        axes: list[str | None] = [None] * len(divides)
        if max(divides):
            axes[int(np.argmax(divides))] = "fsdp"
        large = rules.path_name(path).endswith(("kernel", "embedding"))
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, dtype if large else jnp.float32, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, abstract)


def compiled(module: t5.T5Encoder, mesh: Mesh) -> Callable[..., Array]:
    """A jitted (params, ids, mask) -> states in bfloat16; texts are split over all devices."""
    rows = meshes.batch_sharding(mesh)

    def encode(
        params: Any, ids: Int32[Array, "B K"], mask: Bool[Array, "B K"]
    ) -> Float[Array, "B K E"]:
        states: Any = module.apply({"params": params}, ids, mask)
        return states.astype(jnp.bfloat16)

    return jax.jit(encode, in_shardings=(None, rows, rows), out_shardings=rows)


def store(
    writer: embeddings.Writer, captions: Sequence[str], encode: Encode, batch_size: int
) -> None:
    """Encodes and commits, a batch at a time, the captions that are not stored yet."""
    todo, report = writer.stored.missing(captions), main.progress("captions")
    main.say(f"{len(todo)} captions to encode, {writer.stored.count} are stored")
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        # The last batch is filled up, so that one program encodes them all.
        states, mask = encode([*batch, *[""] * (batch_size - len(batch))])
        writer.add(batch, states[: len(batch)], mask[: len(batch)])
        writer.commit()
        report(start + len(batch), len(todo))
    main.say(f"done: {writer.stored.count + len(todo)} captions in {writer.folder}")


def no_command() -> None:
    """What a call without a command ends with."""
    raise ConfigError("say what to prepare: python -m launch.prepare embed (see its --help)")


if __name__ == "__main__":
    given = sys.argv[1:2] == ["embed"]
    if given:
        del sys.argv[1]  # the rest are flags
    main.run(run if given else no_command)
