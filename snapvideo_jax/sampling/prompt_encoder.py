"""Captions -> states of a published T5 encoder, split over all devices.

Used once a data set, to store its states, and for the prompts of a model that was trained on them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32

from snapvideo_jax import trees
from snapvideo_jax.build import DTYPES
from snapvideo_jax.data.embeddings import fingerprint
from snapvideo_jax.data.text import Tokenizer
from snapvideo_jax.errors import DataError
from snapvideo_jax.files import t5_weights
from snapvideo_jax.models import t5
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules
from snapvideo_jax.training import leaf_digests


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A T5 encoder on the devices: captions -> (states bfloat16 [B, K, E], mask).

    The number of captions may be any; they are padded to a multiple of the devices.
    fingerprint: of weights, vocabulary and dtype, which decide the states of a caption.
    states: (params, ids, mask) -> the states.
    """

    fingerprint: str
    channels: int
    length: int  # K
    mesh: Mesh
    tokenizer: Tokenizer
    params: Any
    states: Callable[..., Array]

    def __call__(
        self, captions: Sequence[str]
    ) -> tuple[Float[np.ndarray, "B K E"], Bool[np.ndarray, "B K"]]:
        """Encodes captions; compiles once for each number of them."""
        missing = -len(captions) % self.mesh.size
        ids, mask = self.tokenizer([*captions, *[""] * missing], self.length)
        states = np.asarray(self.states(self.params, ids, mask))
        return states[: len(captions)], mask[: len(captions)]


def load(folder: str | Path, vocabulary: str | Path | None, length: int, dtype: str) -> Encoder:
    """Reads the weights onto all devices.

    Args:
        folder: of the weights (`t5_weights.open_weights`).
        vocabulary: the sentencepiece model; None: spiece.model in `folder`.
        length: tokens a caption is padded or cut to.
        dtype: of matrix products, a name of build.DTYPES.

    Raises:
        DataError: one line, where either is missing or damaged, or they do not fit each other.
    """
    vocabulary = Path(vocabulary or Path(folder) / "spiece.model")
    mesh = meshes.make_mesh({"data": 1, "fsdp": -1, "group": 1, "tensor": 1}, jax.devices())
    weights, tokenizer = t5_weights.open_weights(folder), Tokenizer(vocabulary)
    pieces, rows = tokenizer.vocabulary_size, weights.config.vocabulary_size
    if pieces > rows:
        raise DataError(
            f"{vocabulary}: has {pieces} pieces, and {folder} embeds {rows}; give --tokenizer the "
            "encoder's own sentencepiece model"
        )
    params = weights.load(abstract_params(weights.abstract(), mesh, DTYPES[dtype]))
    return Encoder(
        fingerprint=fingerprint(leaf_digests.of(params), vocabulary.read_bytes(), dtype),
        channels=weights.config.channels,
        length=length,
        mesh=mesh,
        tokenizer=tokenizer,
        params=params,
        states=encoder_program(module(weights.config, DTYPES[dtype]), mesh),
    )


def module(config: t5_weights.T5Config, dtype: DTypeLike) -> t5.T5Encoder:
    """Returns the encoder for weights of `config`; its matrix products run in `dtype`."""
    return t5.T5Encoder(**config._asdict(), dtype=dtype)


def abstract_params(abstract: Any, mesh: Mesh, dtype: DTypeLike) -> Any:
    """Returns each parameter as it lies on the mesh; kernels and table in `dtype`.

    Norms and position biases are float32: they are small, and `dtype` would only round them.
    """

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        large = trees.path_name(path).endswith(("kernel", "embedding"))
        sharding = rules.largest_axis(leaf.shape, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if large else jnp.float32, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, abstract)


def encoder_program(encoder: t5.T5Encoder, mesh: Mesh) -> Callable[..., Array]:
    """Returns (params, ids, mask) -> states in bfloat16, jitted; texts split over all devices."""
    rows = meshes.batch_sharding(mesh)

    def encode(
        params: Any, ids: Int32[Array, "B K"], mask: Bool[Array, "B K"]
    ) -> Float[Array, "B K E"]:
        states: Any = encoder.apply({"params": params}, ids, mask)
        return states.astype(jnp.bfloat16)

    return jax.jit(encode, in_shardings=(None, rows, rows), out_shardings=rows)
