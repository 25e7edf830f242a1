"""DPM-Solver++(2M) with scaled inputs (Lu et al. 2022, algorithm 2): second order, one D a step.

In EDM's form, alpha = 1 and lambda = -ln sigma, with s = sigma_in. Along a solution of the ODE

    x(t_next) = (t_next / t) x(t) + integral of (t_next / sigma) D / s over lambda, from t to t_next

holds exactly, whatever the length of the step, and only D has to be approximated: by a constant
that estimates it in the middle of the step from the last two values.

    x = t[0] * noise
    for i in range(N):
        D[i] = D(x, t[i])
        D_mid = D[i] + weight[i] * (D[i] - D[i - 1])
        x = (t[i + 1] / t[i]) * x + (1 - t[i + 1] / t[i]) * D_mid / s

The first step has no D before it, and the last, to t[N] = 0, is endless in lambda: their weight is
0, and the sample in the data's range is the last D, as in EDM's samplers.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from snapvideo_jax.diffusion.edm import Elements


def step_weights(grid: Float[Array, " levels"]) -> Float[Array, " N"]:
    """Returns weight = h_i / (2 h_{i-1}) = 1 / (2 r_i), with h the lengths of steps in lambda."""
    N = len(grid) - 1
    h = -jnp.diff(jnp.log(grid[:-1]))
    return jnp.zeros(N).at[1 : N - 1].set(h[1:] / (2 * h[:-1]))


def extrapolate(D: Elements, D_before: Elements, weight: Elements | float) -> Elements:
    """D_mid = (1 + weight) D - weight D_before (Lu et al., algorithm 2: D_i)."""
    return D + weight * (D - D_before)


def step(x: Elements, D: Elements, t: Elements, t_next: Elements, sigma_in: float) -> Elements:
    """x_next = (t_next / t) x + (1 - t_next / t) D / sigma_in: exact where D is constant.

    This is algorithm 2's last line: there -alpha (e^-h - 1) is 1 - t_next / t.
    """
    ratio = t_next / t
    return ratio * x + (1 - ratio) * D / sigma_in
