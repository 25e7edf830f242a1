"""Conditioning augmentation: noise on the low resolution that an upsampler starts from.

A model trained on clean low resolutions copies every flaw of the stage before. One trained on
noised ones, with the level as an input, repairs them (Ho et al. 2021; paper 3.5). The noise goes on
before the enlargement: noise added after it would be averaged away by eye and network.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from snapvideo_jax.diffusion.edm import expand


def corrupt(
    low_res: Float[Array, "B T h w C"], level: Float[Array, " B"], eps: Float[Array, "B T h w C"]
) -> Float[Array, "B T h w C"]:
    """cos(pi u / 2) x + sin(pi u / 2) eps: variance preserving, u = 0 clean, u = 1 noise alone.

    Signal-to-noise ratios 3 and 5 (Imagen Video's) are u = 1/3 and u = 0.268.
    """
    angle = expand(jnp.pi / 2 * level, low_res)
    return jnp.cos(angle) * low_res + jnp.sin(angle) * eps


def resize(x: Float[Array, "B T H W C"], size: tuple[int, int]) -> Float[Array, "B T h w C"]:
    """Resizes each frame to (h, w): bilinear, antialiased where it shrinks."""
    shape = (*x.shape[:2], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=True)
