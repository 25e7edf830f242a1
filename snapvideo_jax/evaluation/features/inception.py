"""Inception-v3 as FID and IS use it: the TensorFlow graph of 2015-12-05, with 1008 classes.

Three things set it apart from the Inception-v3 of ImageNet classifiers (Szegedy et al. 2016):
average pools do not count their padding, the last block's pool is a max pool, and batch norm's
epsilon is 1e-3. Parameters have the names of the port to torch: pt_inception-2015-12-05-6726825d
(pytorch-fid, torch-fidelity, StyleGAN), whose first 8 digits of sha256 its name gives.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from snapvideo_jax.evaluation.features import resize, weights
from snapvideo_jax.evaluation.features.devices import split
from snapvideo_jax.evaluation.features.layers import ConvNorm, concatenate, max_pool, mean_pool
from snapvideo_jax.evaluation.features.weights import Weights

SIDE, FEATURES, CLASSES = 299, 2048, 1008
PUBLISHED = "6726825d"  # of pt_inception-2015-12-05-6726825d.pth
PREPROCESSING = ("tf1", "clean", "half_pixel")

_rows, _columns = (7, 1), (1, 7)


def conv(
    features: int, kernel: int | tuple[int, int], name: str, stride: int = 1, pad: bool = True
) -> ConvNorm:
    """Returns a convolution + norm + ReLU; `pad` is to the same size."""
    shape = (kernel, kernel) if isinstance(kernel, int) else kernel
    return ConvNorm(features, shape, stride=stride, padding="SAME" if pad else "VALID", name=name)


class BlockA(nn.Module):
    """Mixed_5b to 5d: 1x1, 5x5, two 3x3, pool."""

    pooled: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Returns 224 + pooled channels."""
        five = conv(64, 5, "branch5x5_2")(conv(48, 1, "branch5x5_1")(x))
        three = conv(96, 3, "branch3x3dbl_2")(conv(64, 1, "branch3x3dbl_1")(x))
        three = conv(96, 3, "branch3x3dbl_3")(three)
        pool = conv(self.pooled, 1, "branch_pool")(mean_pool(x, 3))
        return concatenate(conv(64, 1, "branch1x1")(x), five, three, pool)


class BlockB(nn.Module):
    """Mixed_6a: halves the size."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns 480 + C channels."""
        one = conv(384, 3, "branch3x3", stride=2, pad=False)(x)
        two = conv(96, 3, "branch3x3dbl_2")(conv(64, 1, "branch3x3dbl_1")(x))
        two = conv(96, 3, "branch3x3dbl_3", stride=2, pad=False)(two)
        return concatenate(one, two, max_pool(x, (3, 3), (2, 2), "VALID"))


class BlockC(nn.Module):
    """Mixed_6b to 6e: 7x7 in rows and columns."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Returns 768 channels."""
        one = conv(self.width, 1, "branch7x7_1")(x)
        one = conv(self.width, _columns, "branch7x7_2")(one)
        one = conv(192, _rows, "branch7x7_3")(one)
        two = conv(self.width, 1, "branch7x7dbl_1")(x)
        two = conv(self.width, _rows, "branch7x7dbl_2")(two)
        two = conv(self.width, _columns, "branch7x7dbl_3")(two)
        two = conv(self.width, _rows, "branch7x7dbl_4")(two)
        two = conv(192, _columns, "branch7x7dbl_5")(two)
        pool = conv(192, 1, "branch_pool")(mean_pool(x, 3))
        return concatenate(conv(192, 1, "branch1x1")(x), one, two, pool)


class BlockD(nn.Module):
    """Mixed_7a: halves the size."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns 512 + C channels."""
        one = conv(320, 3, "branch3x3_2", stride=2, pad=False)(conv(192, 1, "branch3x3_1")(x))
        two = conv(192, _columns, "branch7x7x3_2")(conv(192, 1, "branch7x7x3_1")(x))
        two = conv(192, _rows, "branch7x7x3_3")(two)
        two = conv(192, 3, "branch7x7x3_4", stride=2, pad=False)(two)
        return concatenate(one, two, max_pool(x, (3, 3), (2, 2), "VALID"))


class BlockE(nn.Module):
    """Mixed_7b and 7c: 3x3 forked into a row and a column; 7c's pool is a max pool."""

    is_last: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Returns 2048 channels."""
        fork = lambda h, name: concatenate(
            conv(384, (1, 3), f"{name}a")(h), conv(384, (3, 1), f"{name}b")(h)
        )
        one = fork(conv(384, 1, "branch3x3_1")(x), "branch3x3_2")
        two = conv(384, 3, "branch3x3dbl_2")(conv(448, 1, "branch3x3dbl_1")(x))
        two = fork(two, "branch3x3dbl_3")
        pool = max_pool(x, (3, 3), (1, 1), "SAME") if self.is_last else mean_pool(x, 3)
        pool = conv(192, 1, "branch_pool")(pool)
        return concatenate(conv(320, 1, "branch1x1")(x), one, two, pool)


class InceptionV3(nn.Module):
    """Pictures in [-1, 1] -> pooled features (FID, KID), and logits without bias (IS)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B 299 299 3"]
    ) -> tuple[Float[Array, "B 2048"], Float[Array, "B 1008"]]:
        """Returns (features, logits)."""
        x = conv(32, 3, "Conv2d_1a_3x3", stride=2, pad=False)(x)
        x = conv(32, 3, "Conv2d_2a_3x3", pad=False)(x)
        x = max_pool(conv(64, 3, "Conv2d_2b_3x3")(x), (3, 3), (2, 2), "VALID")
        x = conv(80, 1, "Conv2d_3b_1x1")(x)
        x = max_pool(conv(192, 3, "Conv2d_4a_3x3", pad=False)(x), (3, 3), (2, 2), "VALID")
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = BlockC(width, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(is_last=False, name="Mixed_7b")(x)
        x = BlockE(is_last=True, name="Mixed_7c")(x).mean((1, 2))
        head = nn.Dense(CLASSES, precision="highest", name="fc")
        return x, head(x) - head(jnp.zeros_like(x))


class Features(NamedTuple):
    """pooled: of FID and KID. logits: without bias, of IS."""

    pooled: Float[np.ndarray, "B 2048"]
    logits: Float[np.ndarray, "B 1008"]


def load(path: str | Path, sha256: str | None = None) -> Weights:
    """Reads the weights; raises DataError, one line, where the file is not this network's.

    sha256: `PUBLISHED` for torch's port itself; that of one's own file after a conversion.
    """
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    return weights.load(path, InceptionV3(), images, sha256=sha256)


def preprocess(images: UInt8[np.ndarray, "B H W 3"], way: str = "tf1") -> Float[Array, "B s s 3"]:
    """Resizes to 299 x 299, whatever the aspect ratio, and scales.

    way: "tf1": TensorFlow 1's bilinear, (x - 128) / 128 (the first FID; torch-fidelity). "clean":
    Pillow's antialiased bicubic in floats, (x - 128) / 128 (clean-fid). "half_pixel": torch's
    bilinear, 2 x / 255 - 1 (pytorch-fid, after which many torch papers copy).
    """
    size = (SIDE, SIDE)
    if way == "clean":
        return (split(resize.pillow_bicubic_float(images, size)) - 128) / 128
    resized = resize.bilinear(split(images).astype(jnp.float32), size, kernel=way)
    return (resized - 128) / 128 if way == "tf1" else resized * (2 / 255) - 1


def features(loaded: Weights, images: UInt8[np.ndarray, "B H W 3"], way: str = "tf1") -> Features:
    """Returns the features of a batch of frames; `way` as for `preprocess`."""
    return Features(*map(np.asarray, _apply(loaded.params, preprocess(images, way))))


@jax.jit
def _apply(params: Any, images: Float[Array, "B 299 299 3"]) -> Any:
    return InceptionV3().apply(params, images)
