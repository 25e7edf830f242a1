"""I3D on RGB, trained on Kinetics-400 (Carreira and Zisserman 2017): the features of FVD.

FVD's features are the 400 logits, averaged over time (Unterthiner et al. 2018). Parameters have the
names of the torch port `i3d_pretrained_400.pt` (VideoGPT, TATS, cd-fvd). FVD was defined with the
weights of TF-Hub's deepmind/i3d-kinetics-400/1, which are not those first released as rgb_imagenet.
Batch norm's epsilon is 1e-3 in the original; the port's code has 1e-5, and so its own values.
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation.features import resize, weights
from snapvideo_jax.evaluation.features.devices import split
from snapvideo_jax.evaluation.features.layers import ConvNorm, concatenate, max_pool
from snapvideo_jax.evaluation.features.weights import Weights

SIDE, CLASSES, MIN_FRAMES = 224, 400, 9
EPSILON, EPSILON_OF_PORTS = 1e-3, 1e-5
# Widths of b0, b1a, b1b, b2a, b2b, b3b; max pools stand before 4b and 5b.
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
POOLS = {"4b": (3, 3, 3), "5b": (2, 2, 2)}
PREPROCESSING = ("tf1", "half_pixel", "videogpt")


class Mixed(nn.Module):
    """Joins 1^3; 1^3 then 3^3, twice; and a max pool then 1^3."""

    widths: tuple[int, ...]
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        """Returns b0 + b1b + b2b + b3b channels."""
        b0, b1a, b1b, b2a, b2b, b3b = self.widths
        unit = functools.partial(_unit, epsilon=self.epsilon)
        one = unit(b1b, 3, "b1b")(unit(b1a, 1, "b1a")(x))
        two = unit(b2b, 3, "b2b")(unit(b2a, 1, "b2a")(x))
        pool = unit(b3b, 1, "b3b")(max_pool(x, (3, 3, 3), (1, 1, 1), "SAME"))
        return concatenate(unit(b0, 1, "b0")(x), one, two, pool)


def _unit(features: int, side: int, name: str, *, epsilon: float, stride: int = 1) -> ConvNorm:
    return ConvNorm(
        features,
        (side,) * 3,
        stride=stride,
        padding="SAME",
        epsilon=epsilon,
        names=("conv3d", "bn"),
        name=name,
    )


class I3D(nn.Module):
    """Videos in [-1, 1] of 9 or more frames -> logits; TensorFlow's SAME padding throughout."""

    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Float[Array, "B T 224 224 3"]) -> Float[Array, "B 400"]:
        """Returns the logits, averaged over time."""
        unit = functools.partial(_unit, epsilon=self.epsilon)
        x = unit(64, 7, "Conv3d_1a_7x7", stride=2)(x)
        x = max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = unit(192, 3, "Conv3d_2c_3x3")(unit(64, 1, "Conv3d_2b_1x1")(x))
        x = max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        for name, widths in MIXED.items():
            if name in POOLS:
                x = max_pool(x, POOLS[name], (2, 2, 2), "SAME")
            x = Mixed(widths, self.epsilon, name=f"Mixed_{name}")(x)
        x = nn.avg_pool(x, (2, 7, 7), strides=(1, 1, 1), padding="VALID")
        return Logits(name="logits")(x).mean((1, 2, 3))


class Logits(nn.Module):
    """The last convolution, 1^3 with bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T 1 1 C"]) -> Float[Array, "B T 1 1 400"]:
        """Returns a logit for each class."""
        return nn.Conv(CLASSES, (1, 1, 1), precision="highest", name="conv3d")(x)


def load(path: str | Path, sha256: str | None = None) -> Weights:
    """Reads the weights; raises DataError, one line, where the file is not this network's."""
    videos = jax.ShapeDtypeStruct((1, MIN_FRAMES, SIDE, SIDE, 3), jnp.float32)
    return weights.load(path, I3D(), videos, sha256=sha256)


def preprocess(
    videos: UInt8[np.ndarray, "B T H W 3"], way: str = "tf1"
) -> Float[Array, "B T 224 224 3"]:
    """Resizes to 224 x 224 and scales.

    way: "tf1": TensorFlow 1's bilinear, squashed, 2 x / 255 - 1 (the original; magvit).
    "half_pixel": torch's bilinear, squashed, 2 x / 255 - 1 (TATS, cd-fvd). "videogpt": torch's
    bilinear of the short side, center crop, x / 255 - 0.5: half the range that I3D was trained on.
    """
    x = split(videos).astype(jnp.float32)
    if way != "videogpt":
        return resize.bilinear(x, (SIDE, SIDE), kernel=way) * (2 / 255) - 1
    height, width = x.shape[2:4]
    short = min(height, width)
    size = (-(-SIDE * height // short), -(-SIDE * width // short))
    x = resize.bilinear(x, size, kernel="half_pixel")
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return x[:, :, top : top + SIDE, left : left + SIDE] / 255 - 0.5


def features(
    loaded: Weights,
    videos: UInt8[np.ndarray, "B T H W 3"],
    way: str = "tf1",
    epsilon: float = EPSILON,
) -> Float[np.ndarray, "B 400"]:
    """Returns the features of a batch of videos.

    Args:
        loaded: the weights.
        videos: all of one length; FVD's usual one is 16 frames.
        way: as for `preprocess`.
        epsilon: of batch norm; EPSILON_OF_PORTS to repeat values of torch ports.

    Raises:
        DataError: fewer than 9 frames.
    """
    if videos.shape[1] < MIN_FRAMES:
        raise DataError(f"I3D needs {MIN_FRAMES} or more frames, the videos have {videos.shape[1]}")
    return np.asarray(_apply(loaded.params, preprocess(videos, way), epsilon))


@functools.partial(jax.jit, static_argnames="epsilon")
def _apply(params: Any, videos: Float[Array, "B T 224 224 3"], epsilon: float) -> Any:
    return I3D(epsilon).apply(params, videos)
