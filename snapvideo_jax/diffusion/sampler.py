"""EDM's deterministic sampler with scaled inputs (Karras et al. 2022, algorithm 1; paper 3.6).

This is EDM's own sampler on y = x / sigma_in with the denoiser D / sigma_in, times sigma_in at
the end. A denoiser is any function (x_sigma, sigma, carry) -> (D, carry); the carry is opaque
here (Snap Video carries the latents of the previous evaluation in it).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from snapvideo_jax.diffusion.edm import ode_slope

Carry = TypeVar("Carry")
Denoise = Callable[[Array, Array, Carry], tuple[Array, Carry]]


def euler(denoise: Denoise, x: Array, t: Array, t_next: Array, sigma_in: float, carry: Carry):
    """One first-order step from t to t_next. Returns (x, the slope at t, carry)."""
    D, carry = denoise(x, t, carry)
    d = ode_slope(x, D, t, sigma_in)
    return x + (t_next - t) * d, d, carry


def heun_step(denoise: Denoise, x: Array, t: Array, t_next: Array, sigma_in: float, carry: Carry):
    """One second-order step: Euler, then the mean of the slopes at both ends. t_next > 0."""
    predicted, d, carry = euler(denoise, x, t, t_next, sigma_in, carry)
    D, carry = denoise(predicted, t_next, carry)
    d_next = ode_slope(predicted, D, t_next, sigma_in)
    return x + (t_next - t) * (d + d_next) / 2, carry


def heun(
    denoise: Denoise,
    x: Float[Array, "B ..."],
    grid: Float[np.ndarray | Array, " N+1"],
    sigma_in: float,
    carry: Carry,
) -> Float[Array, "B ..."]:
    """Walks x from sigma = grid[0] down to 0 and returns the sample in the range of the data.

    One compiled loop with 2N - 1 evaluations of `denoise`: the last step, to 0, is Euler's and
    returns exactly D(x_{N-1}, grid[N-1]).
    """
    grid = jnp.asarray(grid)

    def step(state, ts):
        (x, carry), (t, t_next) = state, ts
        return heun_step(denoise, x, t, t_next, sigma_in, carry), None

    (x, carry), _ = jax.lax.scan(step, (x, carry), (grid[:-2], grid[1:-1]))
    D, _ = denoise(x, grid[-2], carry)
    return D
