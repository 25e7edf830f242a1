"""Inputs that the golden script and the tests make alike, from NumPy's frozen generator."""

import zlib

import numpy as np


def features(n, size, seed, shift=0.0):
    """Correlated features, neither Gaussian nor centered."""
    generator = np.random.RandomState(seed)
    mixing = generator.standard_normal((size, size)) / np.sqrt(size)
    x = generator.standard_normal((n, size)) @ mixing
    return np.maximum(x + shift, 0).astype(np.float32)


def logits(n, classes, seed):
    return 3 * np.random.RandomState(seed).standard_normal((n, classes)).astype(np.float32)


def pixels(shape, seed):
    """uint8 pictures or videos [..., H, W, 3] with structure at every scale: blocks plus noise."""
    generator = np.random.RandomState(seed)
    *batch, height, width, channels = shape
    coarse = generator.uniform(0, 255, (*batch, -(-height // 5), -(-width // 5), channels))
    blocks = coarse.repeat(5, axis=-3).repeat(5, axis=-2)[..., :height, :width, :]
    return (0.7 * blocks + 0.3 * generator.uniform(0, 255, shape)).astype(np.uint8)


def tensor(name, shape):
    """The tensor of a torch network, by its name there: sizes stay near 1 from layer to layer."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    noise = generator.standard_normal(shape).astype(np.float32)
    if len(shape) < 2:  # biases, means, and scales of norms
        return 0.1 * noise + (1 if name.endswith("weight") else 0)
    return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def mean_clip():
    """A mean of videos in blue, green and red, as C3D's file has it."""
    return np.random.RandomState(7).uniform(80, 120, (3, 16, 128, 171)).astype(np.float32)


def colors(shape, seed):
    """Normalized pictures."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def tokens(n, largest, seed):
    """Ids of texts of several lengths, which end with the largest id, and zeros after it."""
    generator = np.random.RandomState(seed)
    ids = generator.randint(1, largest - 1, (n, 77)).astype(np.int32)
    for row, end in zip(ids, generator.randint(4, 77, n), strict=True):
        row[end:] = 0
        row[end] = largest - 1
    return ids


# As transformers' configs say it.
CLIP_TOWERS = (
    dict(
        hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    ),
    dict(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1,
        vocab_size=300, max_position_embeddings=77, bos_token_id=298, eos_token_id=299,
    ),
)  # fmt: skip
CAPTIONS = [
    "a red circle moves left slowly",
    "A man is Riding a horse,  on the beach!!",
    "they're 24 dogs & it's 3.5m high... isn't it?",
    "caf\u00e9 na\u00efve \u00fcber \u65e5\u672c\u8a9e \U0001f600",
    "&lt;b&gt; \u201cquoted\u201d it\u2019s x\u00b2 \u00bd \t tab",
    "",
    "supercalifragilisticexpialidocious " * 12,
]


def projection(features, size=8, seed=5):
    """A few random sums of everything, over the last axis: small enough to store."""
    generator = np.random.RandomState(seed)
    directions = generator.standard_normal((features.shape[-1], size))
    return features.astype(np.float64) @ directions / np.sqrt(features.shape[-1])
