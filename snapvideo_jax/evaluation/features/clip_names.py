"""What files of CLIP call each tensor, and the sizes that the tensors' shapes imply."""

import re
from typing import NamedTuple

import numpy as np

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation.features.weights import Tensors, WeightFile

HEAD_CHANNELS = 64  # in all of OpenAI's and most of LAION's models
# Endings that a file may have and the towers do without.
IGNORED = ("logit_scale", "logit_bias", "position_ids", "attn_mask", "input_resolution",
           "context_length", "vocab_size")  # fmt: skip
# OpenAI's name, as a pattern -> Hugging Face's.
OPENAI = (
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"visual\.proj$", "visual_projection.weight"),
    (r"visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.", "text_model.final_layer_norm."),
    (r"text_projection$", "text_projection.weight"),
    (r"transformer\.resblocks\.", "text_model.encoder.layers."),
)
# Within a layer.
LAYER = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
FUSED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")


class Tower(NamedTuple):
    """The sizes of one transformer."""

    width: int
    layers: int
    heads: int


class Sizes(NamedTuple):
    """The sizes of a CLIP: side is that of its pictures, tokens those of its vocabulary."""

    vision: Tower
    text: Tower
    patch: int
    side: int
    tokens: int
    embedding: int


B_32 = Sizes(Tower(768, 12, 12), Tower(512, 12, 8), 32, 224, 49408, 512)
B_16 = B_32._replace(patch=16)
L_14 = Sizes(Tower(1024, 24, 16), Tower(768, 12, 12), 14, 224, 49408, 768)


def to_hugging_face(tensors: Tensors) -> Tensors:
    """Renames OpenAI's tensors to Hugging Face's; those of any other file stay as they are.

    OpenAI holds q, k and v in one matrix, and both projections as [width, embedding].
    """
    if "visual.proj" not in tensors:
        return tensors
    renamed: Tensors = {}
    for name, array in tensors.items():
        new = _rename(name)
        fused = FUSED.fullmatch(new)
        if fused:
            for part, each in zip(np.split(array, 3), "qkv", strict=True):
                renamed[f"{fused[1]}.self_attn.{each}_proj.{fused[2]}"] = part
        else:
            renamed[new] = array.T if name in ("visual.proj", "text_projection") else array
    return renamed


def _rename(name: str) -> str:
    for pattern, new in OPENAI:
        match = re.match(pattern, name)
        if match:
            name = new + name[match.end() :]
            break
    for old, new in LAYER.items():
        name = name.replace(old, new)
    return name


def sizes(file: WeightFile) -> Sizes:
    """Returns the sizes that the shapes imply; heads have 64 channels.

    Raises DataError where a tensor that decides them is missing or has another rank.
    """
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    width, _, patch, _ = _shape(file, f"{vision}patch_embedding.weight", 4)
    places, _ = _shape(file, f"{vision}position_embedding.weight", 2)
    tokens, text_width = _shape(file, f"{text}token_embedding.weight", 2)
    embedding, _ = _shape(file, "visual_projection.weight", 2)
    return Sizes(
        vision=_tower(file, "vision_model", width),
        text=_tower(file, "text_model", text_width),
        patch=patch,
        side=patch * round(max(places - 1, 1) ** 0.5),
        tokens=tokens,
        embedding=embedding,
    )


def _tower(file: WeightFile, name: str, width: int) -> Tower:
    pattern = re.compile(rf"{name}\.encoder\.layers\.(\d+)\.")
    layers = {match[1] for match in map(pattern.match, file.tensors) if match}
    return Tower(width, layers=len(layers), heads=max(width // HEAD_CHANNELS, 1))


def _shape(file: WeightFile, name: str, rank: int) -> tuple[int, ...]:
    shape = file.tensors[name].shape if name in file.tensors else None
    if shape is None or len(shape) != rank or 0 in shape:
        raise DataError(f"{file.path}: {name!r} is {shape}; expected a CLIP's, in {rank} sizes")
    return shape
