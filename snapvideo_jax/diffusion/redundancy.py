"""How redundant videos are: the noise that they bear, and the sigma_in that follows (3.2).

The more equal pixels a video has, the more of it shows through the same noise: averaging T s^2 of
them divides the noise's variance by as much. The paper concludes sigma_in = s sqrt(T) from sizes
alone. Here the videos are asked: which noise leaves half of their variance to the best linear
denoiser? By it sigma_in also knows flat pictures from busy ones, and still scenes from moving ones.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.fft import dct
from jaxtyping import Array, Float

# The half noise level of photographs of 64 x 64 pixels, for which EDM's P_mean was found. Measured
# on seven (astronaut, chelsea, coffee, rocket and the pair motorcycle of scikit-image, grace_hopper
# of matplotlib; cut square, averaged over areas; mean of their spectra, the mean of each removed).
# Alone they have 2.3 to 10.2. All at 32, 128 and 256 pixels: 1.69, 4.97, 9.10.
PHOTOGRAPHS_64 = 2.83


def power_spectrum(videos: Float[Array, "N T H W C"]) -> Float[Array, "T H W"]:
    """Returns the mean power of each frequency (orthonormal DCT-II), the overall mean removed.

    Its mean is the variance of the videos' pixels.
    """
    spectrum = videos - videos.mean()
    for axis in (1, 2, 3):
        spectrum = dct(spectrum, axis=axis, norm="ortho")
    return jnp.square(spectrum).mean(axis=(0, 4))


def wiener_error(power: Float[Array | np.ndarray, "..."], noise: float) -> float:
    """Returns the share of the variance that the best linear denoiser leaves unexplained.

    S u^2 / (S + u^2) at each frequency, of power S, under white noise of standard deviation u, in
    units of the pixels (Wiener). 0 without noise, 1 under infinite noise.
    """
    S = np.asarray(power, np.float64)
    return float((S * noise**2 / (S + noise**2)).sum() / S.sum())


def half_noise_level(power: Float[Array | np.ndarray, "..."]) -> float:
    """Returns the noise u, in units of the pixels, that leaves half: `wiener_error` = 1/2.

    For pixels independent of each other it is their standard deviation; n equal pixels at a time
    make it sqrt(n) times as large.

    Raises:
        ValueError: videos without any variance.
    """
    if not float(jnp.max(power)) > 0:
        raise ValueError("all pixels of all videos are equal: there is nothing to denoise")
    low, high = -20.0, 20.0  # of log2 u; the error grows with u
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if wiener_error(power, 2**middle) < 0.5 else (low, middle)
    return 2**low


def sigma_in_of(power: Float[Array | np.ndarray, "..."]) -> float:
    """Returns the sigma_in that gives videos of this spectrum the SNR of 64 px photographs."""
    return half_noise_level(power) / PHOTOGRAPHS_64


def sigma_in_by_size(num_frames: int, height: int, width: int) -> float:
    """Returns the paper's s sqrt(T), with s = max(height, width) / 64 pixels."""
    return max(height, width) / 64 * math.sqrt(num_frames)
