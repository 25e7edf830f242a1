"""Features of a fixed random network: no weights to fetch, the same numbers on every machine.

For regression tests and for curves over steps or sizes of one's own models. A Frechet distance of
these features is to be called by their name, never FVD: nothing was learned, so the scale of the
values means nothing and no table in print has them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from snapvideo_jax.evaluation.features.devices import split

WIDTHS, STRIDES = (16, 32, 32), (1, 2, 1)  # of the layers; as seen on damaged sets of shapes
FEATURES = 2 * WIDTHS[-1]
DIMENSIONS = ("NTHWC", "THWIO", "NTHWC")


@functools.lru_cache(maxsize=4)
def kernels(seed: int) -> tuple[Float[np.ndarray, "3 3 3 _ _"], ...]:
    """Draws the kernels with NumPy's frozen generator, so no version of JAX changes them."""
    generator = np.random.RandomState(seed)
    shapes = zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)
    return tuple(
        (generator.standard_normal((3, 3, 3, i, o)) * np.sqrt(2 / (27 * i))).astype(np.float32)
        for i, o in shapes
    )


def features(video: UInt8[np.ndarray, "B T H W 3"], seed: int = 0) -> Float[np.ndarray, "B F"]:
    """Returns mean and standard deviation over time and space of each channel of the last layer.

    Three 3^3 convolutions with ReLU, edges repeated, at the video's own size; so the
    features of two sizes are not comparable.
    """
    return np.asarray(_features(split(video), kernels(seed)))


@jax.jit
def _features(
    video: UInt8[Array, "B T H W 3"], weights: tuple[Float[Array, "3 3 3 _ _"], ...]
) -> Float[Array, "B F"]:
    x = video.astype(jnp.float32) / 127.5 - 1
    for kernel, stride in zip(weights, STRIDES, strict=True):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 3, "VALID", dimension_numbers=DIMENSIONS, precision="highest"
        )
        x = jax.nn.relu(x)
    return jnp.concatenate([x.mean((1, 2, 3)), x.std((1, 2, 3))], axis=-1)
