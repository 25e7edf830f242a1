"""CLIP's two towers as vision transformers (Radford et al. 2021): CLIPSIM and CLIP-FID.

Modules and parameters have the names of Hugging Face's CLIPModel, so that its safetensors load as
they are; OpenAI's archives and open_clip's files are renamed by `clip_names.py`. Sizes are read
from the shapes. OpenAI's weights need the activation x sigmoid(1.702 x), most of LAION's the GELU.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from snapvideo_jax.evaluation.features import clip_names, resize, weights
from snapvideo_jax.evaluation.features.clip_names import Sizes, Tower
from snapvideo_jax.evaluation.features.clip_tokens import CONTEXT, Vocabulary
from snapvideo_jax.evaluation.features.devices import split
from snapvideo_jax.evaluation.features.weights import Weights

# sha256 of OpenAI's archives, as their addresses give them.
PUBLISHED = {
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14.pt": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
}
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
EPSILON = 1e-5

_dense = functools.partial(nn.Dense, precision="highest")
_norm = functools.partial(nn.LayerNorm, EPSILON)


class Layer(nn.Module):
    """x + MHA(LN(x)), then x + MLP(LN(x))."""

    heads: int
    is_causal: bool
    quick_gelu: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Returns tokens of the same shape."""
        width = x.shape[-1]
        h = _norm(name="layer_norm1")(x)
        split = lambda t: t.reshape(*t.shape[:2], self.heads, -1)
        q, k, v = (split(_dense(width, name=f"self_attn.{each}_proj")(h)) for each in "qkv")
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") / q.shape[-1] ** 0.5
        if self.is_causal:
            seen = np.tril(np.ones(logits.shape[-2:], np.bool_))
            logits = jnp.where(seen[None, None], logits, -jnp.inf)
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v, precision="highest")
        x = x + _dense(width, name="self_attn.out_proj")(out.reshape(h.shape))
        h = _dense(4 * width, name="mlp.fc1")(_norm(name="layer_norm2")(x))
        h = h * jax.nn.sigmoid(1.702 * h) if self.quick_gelu else nn.gelu(h, approximate=False)
        return x + _dense(width, name="mlp.fc2")(h)


class Vision(nn.Module):
    """Pictures -> the class token after the last layer."""

    tower: Tower
    patch: int
    quick_gelu: bool

    @nn.compact
    def __call__(self, images: Float[Array, "B s s 3"]) -> Float[Array, "B D"]:
        """Returns the normalized class token."""
        size, width = (self.patch, self.patch), self.tower.width
        name = "embeddings.patch_embedding"
        patches = nn.Conv(width, size, size, use_bias=False, precision="highest", name=name)(images)
        x = patches.reshape(len(images), -1, width)
        first = self.param("embeddings.class_embedding", nn.initializers.zeros, (width,))
        first = jnp.broadcast_to(first[None, None], (len(images), 1, width))
        x = jnp.concatenate([first, x], axis=1)
        x = x + _positions(x.shape[1], width)[None]
        x = _layers(_norm(name="pre_layrnorm")(x), self.tower, False, self.quick_gelu)
        return _norm(name="post_layernorm")(x[:, 0])


class Text(nn.Module):
    """Token ids -> the token of the end of text, which has the largest id, after the last layer."""

    tower: Tower
    tokens: int
    quick_gelu: bool

    @nn.compact
    def __call__(self, ids: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """Returns the normalized last token."""
        width = self.tower.width
        x = nn.Embed(self.tokens, width, name="embeddings.token_embedding")(ids)
        x = x + _positions(ids.shape[1], width)[None]
        x = _norm(name="final_layer_norm")(_layers(x, self.tower, True, self.quick_gelu))
        return jnp.take_along_axis(x, ids.argmax(-1)[:, None, None], axis=1)[:, 0]


def _positions(count: int, width: int) -> Float[Array, "N D"]:
    return nn.Embed(count, width, name="embeddings.position_embedding")(jnp.arange(count))


def _layers(
    x: Float[Array, "B N D"], tower: Tower, is_causal: bool, quick_gelu: bool
) -> Float[Array, "B N D"]:
    """Returns x after the layers of a tower."""
    for i in range(tower.layers):
        x = Layer(tower.heads, is_causal, quick_gelu, name=f"encoder.layers.{i}")(x)
    return x


class CLIP(nn.Module):
    """Both towers, each with its projection to the common space."""

    sizes: Sizes
    quick_gelu: bool = True

    def setup(self) -> None:
        """Names the parts as CLIPModel does."""
        s = self.sizes
        self.vision_model = Vision(s.vision, s.patch, self.quick_gelu)
        self.text_model = Text(s.text, s.tokens, self.quick_gelu)
        self.visual_projection = _dense(s.embedding, use_bias=False)
        self.text_projection = _dense(s.embedding, use_bias=False)

    def __call__(
        self, images: Float[Array, "B s s 3"], ids: Int[Array, "B K"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        """Returns the embeddings of pictures and of texts."""
        return self.embed_images(images), self.embed_texts(ids)

    def embed_images(self, images: Float[Array, "B s s 3"]) -> Float[Array, "B D"]:
        """Returns embeddings, not normalized."""
        return self.visual_projection(self.vision_model(images))

    def embed_texts(self, ids: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """Returns embeddings, not normalized."""
        return self.text_projection(self.text_model(ids))


class LoadedCLIP(NamedTuple):
    """The network of a file's sizes, and its weights."""

    module: CLIP
    weights: Weights


def load(path: str | Path, sha256: str | None = None, quick_gelu: bool = True) -> LoadedCLIP:
    """Reads CLIP of any size from Hugging Face's, OpenAI's or open_clip's file.

    Args:
        path: .safetensors, .npz, or OpenAI's archive as it is (ViT-B-32.pt).
        sha256: as for `weights.open_file`; `PUBLISHED` has those of OpenAI's archives.
        quick_gelu: False for weights that were trained with the usual GELU, as most of LAION's.

    Raises:
        DataError: one line, where the file is damaged or not one of a CLIP with vision transformer.
    """
    file = weights.open_file(path, sha256)
    file = file._replace(tensors=clip_names.to_hugging_face(file.tensors))
    sizes = clip_names.sizes(file)
    module = CLIP(sizes, quick_gelu)
    images, ids = abstract_inputs(sizes)
    return LoadedCLIP(module, weights.fit(file, module, images, ids, ignored=clip_names.IGNORED))


def abstract_inputs(sizes: Sizes) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of one picture and one text."""
    images = jax.ShapeDtypeStruct((1, sizes.side, sizes.side, 3), jnp.float32)
    return images, jax.ShapeDtypeStruct((1, CONTEXT), jnp.int32)


def preprocess(images: UInt8[np.ndarray, "B H W 3"], side: int) -> Float[np.ndarray, "B s s 3"]:
    """Resizes the short side by Pillow's bicubic, crops the center, normalizes the colors."""
    x = resize.pillow_bicubic_crop(images, side).astype(np.float32) / 255
    return (x - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


def image_features(
    loaded: LoadedCLIP, images: UInt8[np.ndarray, "B H W 3"]
) -> Float[np.ndarray, "B D"]:
    """Returns the embeddings of pictures, not normalized: the features of CLIP-FID."""
    x = preprocess(images, loaded.module.sizes.side)
    return np.asarray(_apply(loaded.module, "embed_images", loaded.weights.params, split(x)))


def frame_features(
    loaded: LoadedCLIP, videos: UInt8[np.ndarray, "B T H W 3"]
) -> Float[np.ndarray, "B T D"]:
    """Returns the embeddings of every frame, for `scores.clipsim`."""
    features = image_features(loaded, videos.reshape(-1, *videos.shape[2:]))
    return features.reshape(*videos.shape[:2], -1)


def text_features(
    loaded: LoadedCLIP, vocabulary: Vocabulary, captions: Sequence[str]
) -> Float[np.ndarray, "B D"]:
    """Returns the embeddings of captions, not normalized."""
    ids = vocabulary.encode(captions)
    return np.asarray(_apply(loaded.module, "embed_texts", loaded.weights.params, ids))


@functools.partial(jax.jit, static_argnames=("module", "method"))
def _apply(module: CLIP, method: str, params: Any, x: Array) -> Any:
    return module.apply(params, x, method=method)
