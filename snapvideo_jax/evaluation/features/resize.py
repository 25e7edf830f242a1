"""Resizing as each reference does it, kernel by kernel: they differ by several grey levels.

Bilinear kernels are matrices [out, in] for height and for width, without antialiasing; they differ
in where the center of an output pixel lies in the input. Bicubic with antialiasing is Pillow's own.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

# kernel -> position in the input of output pixel i, of `out` pixels from `size`.
CENTERS = {
    "tf1": lambda i, size, out: i * size / out,
    "half_pixel": lambda i, size, out: (i + 0.5) * size / out - 0.5,
    "align_corners": lambda i, size, out: i * (size - 1) / max(out - 1, 1),
}


@functools.lru_cache(maxsize=64)
def matrix(kernel: str, size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Returns the weights of every input pixel in every output pixel; each row sums to 1.

    tf1: TensorFlow 1's resize_bilinear (Google's FID and FVD). half_pixel: torch's interpolate with
    align_corners=False. align_corners: with True.
    """
    center = CENTERS[kernel](np.arange(out, dtype=np.float64), size, out).clip(0, size - 1)
    low = np.floor(center).astype(int)
    high, fraction = np.minimum(low + 1, size - 1), center - low
    weights, rows = np.zeros((out, size)), np.arange(out)
    np.add.at(weights, (rows, low), 1 - fraction)
    np.add.at(weights, (rows, high), fraction)
    return weights.astype(np.float32)


def bilinear(
    x: Float[Array | np.ndarray, "*B H W C"], size: tuple[int, int], kernel: str
) -> Float[Array, "*B h w C"]:
    """Resizes to `size` (h, w), whatever the aspect ratio."""
    rows, columns = (matrix(kernel, n, out) for n, out in zip(x.shape[-3:-1], size, strict=True))
    return jnp.einsum("hH,...HWC,wW->...hwC", rows, x, columns, precision="highest")


def pillow_bicubic_float(
    images: UInt8[np.ndarray, "B H W 3"], size: tuple[int, int]
) -> Float[np.ndarray, "B h w 3"]:
    """Resizes each channel as floats, by Pillow's antialiased bicubic: clean-fid's way.

    What passes 0 and 255 at sharp edges is clipped; nothing is rounded.
    """
    resize = lambda plane: np.asarray(
        Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    )
    planes = np.moveaxis(images, -1, 1).astype(np.float32)
    resized = [np.stack([resize(plane) for plane in image], -1) for image in planes]
    return np.stack(resized).clip(0, 255)


def pillow_bicubic_crop(
    images: UInt8[np.ndarray, "B H W 3"], size: int
) -> UInt8[np.ndarray, "B size size 3"]:
    """Resizes the short side to `size` by Pillow's bicubic on uint8, then crops the center.

    CLIP's way, with torchvision's rounding: the long side becomes floor(size long / short), and the
    crop begins at half the excess, rounded to even.
    """
    height, width = images.shape[1:3]
    short = min(height, width)
    new_height, new_width = size * height // short, size * width // short
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    frames = (
        Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
        for image in images
    )
    crop = (slice(top, top + size), slice(left, left + size))
    return np.stack([np.asarray(frame)[crop] for frame in frames])
