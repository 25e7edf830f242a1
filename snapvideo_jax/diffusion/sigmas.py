"""Noise levels: the density that training draws from, and the grid of the sampler."""

import functools
import math

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from snapvideo_jax.diffusion import edm


def draw_log_sigma(key: PRNGKeyArray, n: int, P_mean: float, P_std: float) -> Float[Array, " n"]:
    """Draws ln sigma ~ N(P_mean, P_std^2), one an example (EDM Table 1, the paper's values)."""
    return P_mean + P_std * jax.random.normal(key, (n,))


@functools.lru_cache
def mean_loss_weight_F(P_mean: float, P_std: float, sigma_data: float, sigma_in: float) -> float:
    """Integrates E[w] of `edm.loss_weight_F` under the training density, in float64.

    With the paper's P_mean and P_std: 1, 9.3669, 247.559 at sigma_in 1, 4, 32.
    Gauss-Hermite quadrature would miss the steep flank of w at large sigma_in, so this is the
    trapezoid rule over +-12 standard deviations.
    """
    z = np.linspace(-12, 12, 20_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    w = edm.loss_weight_F(np.exp(P_mean + P_std * z), sigma_data, sigma_in)
    return float(np.trapezoid(w * density, z))


def sampling_grid(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float
) -> Float[np.ndarray, " {num_steps}+1"]:
    """t_0 = sigma_max > ... > t_{N-1} = sigma_min > t_N = 0, in float32 (EDM eq. 5).

    One step means one call at sigma_max.
    """
    if num_steps < 1:
        raise ValueError(f"the sampler needs at least 1 step, got {num_steps}")
    fraction = np.arange(num_steps) / max(num_steps - 1, 1)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    grid = (top + fraction * (bottom - top)) ** rho
    return np.append(grid, 0.0).astype(np.float32)
