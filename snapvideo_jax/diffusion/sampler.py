"""Samplers with scaled inputs: EDM's (Karras et al. 2022; paper 3.6) and DPM-Solver++(2M).

EDM's algorithm 2 with t the grid of noise levels, D the denoiser and s = sigma_in; algorithm 1 is
gamma = 0:

    x = t[0] * noise
    for i in range(N):
        t_hat = t[i] * (1 + gamma[i]);  x = x + sqrt(t_hat^2 - t[i]^2) * S_noise * eps[i]
        slope = (x - D(x, t_hat) / s) / t_hat
        point = x + (t[i + 1] - t_hat) * slope                                      (Euler)
        if t[i + 1] > 0:
            slope_at_point = (point - D(point, t[i + 1]) / s) / t[i + 1]
            point = x + (t[i + 1] - t_hat) * (slope + slope_at_point) / 2            (Heun)
        x = point

The last step, to t[N] = 0, returns exactly D / s at t[N - 1], so the sample in the data's range is
the last D. `call_of` runs the same calls of D one after the other, so that a single loop over them
compiles D once, and may pause: `_calls` is the table that says what each of them is for.
DPM-Solver++(2M) has one call a step; its equations are in `dpm_solver.py`.

A denoiser is any function (x_sigma, sigma, guidance, carry) -> (D, carry). Both of the last are
opaque here: the guidance belongs to the step, the carry goes from each call to the next (Snap
Video: the latents).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from snapvideo_jax.diffusion import dpm_solver
from snapvideo_jax.diffusion.edm import ode_slope

Solver = Literal["heun", "euler", "dpmpp_2m"]
Denoise = Callable[[Array, Array, Any, Any], tuple[Array, Any]]


class Churn(NamedTuple):
    """Noise that each step adds before it goes down (EDM algorithm 2, its names).

    eps: step -> unit noise of the shape of x, the same for every call with one step. A batch whose
    samples must not depend on each other draws each sample's noise from that sample's seed.
    """

    eps: Callable[[Int[Array, ""]], Float[Array, "B ..."]]
    S_churn: float
    S_min: float
    S_max: float
    S_noise: float


class SamplerInputs(NamedTuple):
    """What a sampler runs on.

    denoise: called 2 N - 1 times by "heun", N times by the other solvers.
    grid: noise levels, falling, the last 0.
    sigma_in: the input scaling factor.
    guidance: tree of [N, ...]; every call of step i receives its entries i.
    solver: "heun" corrects each step (second order), "euler" none; "dpmpp_2m" is of second order by
        what it remembers of the step before.
    churn: None is the deterministic sampler, algorithm 1; EDM's solvers alone take it.
    """

    denoise: Denoise
    grid: Float[np.ndarray | Array, " levels"]
    sigma_in: float
    guidance: Any
    solver: Solver
    churn: Churn | None


class SamplerState(NamedTuple):
    """Between two calls. Within a step `point` is ahead of `x`; at its end they are one."""

    x: Array  # where the step started
    point: Array  # where the next slope is taken
    D: Array  # the estimate at x
    carry: Any


def start(x: Float[Array, "B ..."], carry: Any) -> SamplerState:
    """Returns the state before the first call. x: noise of level grid[0], float32."""
    return SamplerState(x=x, point=x, D=jnp.zeros_like(x), carry=carry)


def sample(inputs: SamplerInputs, state: SamplerState) -> Float[Array, "B ..."]:
    """Runs all calls without a pause; returns the sample in the data's range."""
    total = num_calls(len(inputs.grid) - 1, inputs.solver)
    return jax.lax.fori_loop(0, total, call_of(inputs), state).D


def num_calls(num_steps: int, solver: Solver) -> int:
    """Returns how often a whole run calls the denoiser."""
    return 2 * num_steps - 1 if solver == "heun" else num_steps


def call_levels(grid: Float[np.ndarray, " levels"], solver: Solver) -> Float[np.ndarray, " calls"]:
    """Returns the noise level of each call of a whole run without churn."""
    step, corrects, _ = _calls(len(grid) - 1, solver)
    return grid[step + corrects]


Call = Callable[[Int[Array, ""], SamplerState], SamplerState]


def call_of(inputs: SamplerInputs) -> Call:
    """Returns (k, state) -> state after call k of the sampler, for a loop over a range of calls.

    One compiled loop serves any range, so a sampler can pause without compiling again.
    """
    return _multistep_call(inputs) if inputs.solver == "dpmpp_2m" else _edm_call(inputs)


def _edm_call(inputs: SamplerInputs) -> Call:
    """Returns call k of algorithm 2: half a step of Heun's method, or one of Euler's."""
    grid, churn, sigma_in = jnp.asarray(inputs.grid), inputs.churn, inputs.sigma_in
    gamma = _gamma(grid[:-1], churn)
    table = [jnp.asarray(column) for column in _calls(len(grid) - 1, inputs.solver)]

    def call(k: Int[Array, ""], state: SamplerState) -> SamplerState:
        i, corrects, finishes = (column[k] for column in table)
        t_hat, t_next = grid[i] * (1 + gamma[i]), grid[i + 1]
        if churn is not None:
            state = _add_churn(state, churn, i=i, t=grid[i], gamma=gamma[i], corrects=corrects)
        x, point, D, carry = state
        t = jnp.where(corrects, t_next, t_hat)
        D_point, carry = inputs.denoise(point, t, _guidance(inputs, i), carry)
        D = jnp.where(corrects, D, D_point)
        slope = ode_slope(x, D, t_hat, sigma_in)
        slope_at_point = ode_slope(point, D_point, t, sigma_in)
        # (Heun). Before the correction point is x, so both slopes are one, and this is (Euler).
        point = x + (t_next - t_hat) * (slope + slope_at_point) / 2
        return SamplerState(x=jnp.where(finishes, point, x), point=point, D=D, carry=carry)

    return call


def _multistep_call(inputs: SamplerInputs) -> Call:
    """Returns call i of DPM-Solver++(2M), which is its step i."""
    assert inputs.churn is None, "DPM-Solver++(2M) adds no noise: generator.py refuses it"
    grid, sigma_in = jnp.asarray(inputs.grid), inputs.sigma_in
    weight = dpm_solver.step_weights(grid)

    def call(i: Int[Array, ""], state: SamplerState) -> SamplerState:
        D, carry = inputs.denoise(state.x, grid[i], _guidance(inputs, i), state.carry)
        D_mid = dpm_solver.extrapolate(D, state.D, weight[i])
        x = dpm_solver.step(state.x, D_mid, grid[i], grid[i + 1], sigma_in)
        return SamplerState(x=x, point=x, D=D, carry=carry)

    return call


def _guidance(inputs: SamplerInputs, i: Int[Array, ""]) -> Any:
    """Returns the guidance of step i."""
    return jax.tree.map(lambda column: jnp.asarray(column)[i], inputs.guidance)


def _calls(num_steps: int, solver: Solver) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for each call, its step i, whether it corrects the step, and finishes it.

    For 3 steps of Heun's method:

        k   i   corrects   finishes   D is evaluated at
        0   0   no         no         x, t_hat of step 0
        1   0   yes        yes        point, t[1]
        2   1   no         no         x, t_hat of step 1
        3   1   yes        yes        point, t[2]
        4   2   no         yes        x, t_hat of step 2; t[3] is 0
    """
    if solver == "heun":
        step = np.repeat(np.arange(num_steps), 2)[:-1]
    else:
        step = np.arange(num_steps)
    changes = step[1:] != step[:-1]
    return step, np.append(False, ~changes), np.append(changes, True)


def _gamma(t: Float[Array, " N"], churn: Churn | None) -> Float[Array, " N"]:
    """Returns by which part of itself the level rises before each step (algorithm 2, line 4)."""
    if churn is None:
        return jnp.zeros_like(t)
    inside = (churn.S_min <= t) & (t <= churn.S_max)
    return jnp.where(inside, min(churn.S_churn / len(t), math.sqrt(2) - 1), 0.0)


def _add_churn(
    state: SamplerState,
    churn: Churn,
    i: Int[Array, ""],
    t: Float[Array, ""],
    gamma: Float[Array, ""],
    corrects: Bool[Array, ""],
) -> SamplerState:
    """Adds, at the start of a step, noise that lifts the level from t to t (1 + gamma)."""

    def lifted() -> Array:
        # sqrt(t_hat^2 - t^2), without its cancellation
        deviation = t * jnp.sqrt(gamma * (2 + gamma))
        return state.x + deviation * churn.S_noise * churn.eps(i)

    rises = ~corrects & (gamma > 0)
    x = jax.lax.cond(rises, lifted, lambda: state.x)
    return state._replace(x=x, point=jnp.where(corrects, state.point, x))
