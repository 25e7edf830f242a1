"""Figure 2: the more equal pixels are averaged, the more of a video shows through its noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from snapvideo_jax.diffusion import edm

BLOCKS = ((1, 1), (2, 1), (4, 1), (1, 2), (4, 2), (1, 4), (4, 4))  # frames, pixels a side


class Average(NamedTuple):
    """What is left of videos under noise of u = 1 as means over blocks of frames x side x side.

    snr: 10 log10 of the variance of the clean means over that of their noise, in dB. lost: share of
    the videos' variance that lies within blocks, which the means do not show.
    """

    frames: int
    side: int
    snr: float
    lost: float


def averages(videos: UInt8[np.ndarray, "N T H W 3"]) -> list[Average]:
    """Returns what each of BLOCKS leaves; equal pixels gain 10 log10(frames side^2) dB."""
    x = edm.from_pixels(jnp.asarray(videos))
    eps = jax.random.normal(jax.random.key(0), x.shape)
    rows = []
    for frames, side in BLOCKS:
        means = _block_means(x, frames, side)
        snr = 10 * jnp.log10(means.var() / _block_means(eps, frames, side).var())
        lost = 1 - means.var() / x.var()
        rows.append(Average(frames, side, float(snr), float(lost)))
    return rows


def _block_means(x: Float[Array, "N T H W C"], frames: int, side: int) -> Float[Array, "N t h w C"]:
    N, T, H, W, C = x.shape
    blocks = x.reshape(N, T // frames, frames, H // side, side, W // side, side, C)
    return blocks.mean(axis=(2, 4, 6))
