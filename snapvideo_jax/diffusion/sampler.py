"""EDM's samplers with scaled inputs (Karras et al. 2022, algorithms 1 and 2; paper 3.6).

This is EDM's own sampler on y = x / sigma_in with the denoiser D / sigma_in, times sigma_in at
the end. A denoiser is any function (x_sigma, sigma, control, carry) -> (D, carry). Both of the last
are opaque here: the control belongs to the step (Snap Video: its guidance weight), the carry goes
from each evaluation to the next (Snap Video: the latents).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from snapvideo_jax.diffusion.edm import ode_slope

Denoise = Callable[[Array, Array, Any, Any], tuple[Array, Any]]


class Churn(NamedTuple):
    """Noise that each step adds before it walks down (EDM algorithm 2, its names and defaults).

    eps: step -> unit noise of the shape of x, the same whenever asked for the same step. A batch
    whose samples shall not depend on each other draws each sample's from that sample's seed.
    """

    eps: Callable[[Int[Array, ""]], Float[Array, "B ..."]]
    S_churn: float
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0


def walk(
    denoise: Denoise,
    x: Float[Array, "B ..."],
    grid: Float[np.ndarray | Array, " N+1"],
    sigma_in: float,
    carry: Any,
    controls: Any = None,
    heun: bool = True,
    churn: Churn | None = None,
) -> Float[Array, "B ..."]:
    """Walks x from sigma = grid[0] down to grid[N] = 0; returns the sample in the data's range.

    2N - 1 evaluations of `denoise`, in one loop that compiles it once: each step is Euler's and
    then takes the mean of the slopes at both its ends (Heun). The last step, to 0, stays Euler's
    and so returns exactly D at the level that it starts from. x and the estimates are float32.
    controls: tree of [N, ...]; every evaluation of step i receives its entries i.
    heun: False leaves the correction out: N evaluations, first order.
    churn: None is the deterministic sampler, algorithm 1.
    """
    last = evaluations(len(grid) - 1, heun)
    state = State(x, x, jnp.zeros_like(x), carry)
    return stretch(denoise, state, 0, last, grid, sigma_in, controls, heun, churn).D


class State(NamedTuple):
    """Between two evaluations. Within a step `point` is ahead of `x`; at its end they are one."""

    x: Array  # where the step started
    point: Array  # where the next slope is wanted
    D: Array  # the estimate at x
    carry: Any


def evaluations(num_steps: int, heun: bool) -> int:
    """How often a whole walk asks the denoiser."""
    return 2 * num_steps - 1 if heun else num_steps


def stretch(
    denoise: Denoise,
    state: State,
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
    grid: Float[np.ndarray | Array, " N+1"],
    sigma_in: float,
    controls: Any = None,
    heun: bool = True,
    churn: Churn | None = None,
) -> State:
    """The evaluations `first` .. `last` - 1 of a walk, as in `walk`, whatever the others are.

    One program walks any stretch, so a walk can pause without being compiled again.
    """
    grid = jnp.asarray(grid)
    gamma = _gamma(grid[:-1], churn)
    table = [jnp.asarray(column) for column in _evaluations(len(grid) - 1, heun)]

    def evaluate(k: Int[Array, ""], state: State) -> State:
        i, correcting, finishing = (column[k] for column in table)
        t, t_next = grid[i] * (1 + gamma[i]), grid[i + 1]
        if churn is not None:
            state = _churned(state, churn, i, grid[i], gamma[i], correcting)
        control = jax.tree.map(lambda c: jnp.asarray(c)[i], controls)
        level = jnp.where(correcting, t_next, t)
        D_point, carry = denoise(state.point, level, control, state.carry)
        D = jnp.where(correcting, state.D, D_point)
        # Before the correction the two slopes are one, and this is Euler's step.
        slope = ode_slope(state.x, D, t, sigma_in)
        slope_at_point = ode_slope(state.point, D_point, level, sigma_in)
        point = state.x + (t_next - t) * (slope + slope_at_point) / 2
        return State(jnp.where(finishing, point, state.x), point, D, carry)

    return jax.lax.fori_loop(first, last, evaluate, state)


def _evaluations(num_steps: int, heun: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each evaluation: its step, whether it corrects the step, whether it finishes it."""
    if heun:
        step = np.repeat(np.arange(num_steps), 2)[:-1]
    else:
        step = np.arange(num_steps)
    changes = step[1:] != step[:-1]
    return step, np.append(False, ~changes), np.append(changes, True)


def _gamma(t: Float[Array, " N"], churn: Churn | None) -> Float[Array, " N"]:
    """By which part of itself the level rises before each step (EDM algorithm 2, line 4)."""
    if churn is None:
        return jnp.zeros_like(t)
    inside = (churn.S_min <= t) & (t <= churn.S_max)
    return jnp.where(inside, min(churn.S_churn / len(t), math.sqrt(2) - 1), 0.0)


def _churned(
    state: State, churn: Churn, i: Array, t: Array, gamma: Array, correcting: Array
) -> State:
    """At the start of a step: noise that lifts the level from t to t (1 + gamma)."""

    def noised() -> Array:
        # sqrt(t_hat^2 - t^2), without its cancellation
        deviation = t * jnp.sqrt(gamma * (2 + gamma))
        return state.x + deviation * churn.S_noise * churn.eps(i)

    rises = ~correcting & (gamma > 0)
    x = jax.lax.cond(rises, noised, lambda: state.x)
    return state._replace(x=x, point=jnp.where(correcting, state.point, x))
