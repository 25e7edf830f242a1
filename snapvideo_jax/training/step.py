"""One training step: noise, two passes, loss, clip, update, EMA. Pure; jitted once, donated."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, sigmas
from snapvideo_jax.training import keys, optim
from snapvideo_jax.training.state import TrainState

STREAMS = (
    "sigma", "eps", "label1", "label2", "latents", "dropout1", "dropout2",
    "level", "low_res",
)  # fmt: skip
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The numbers that define the loss; all are fields of the config."""

    P_mean: float
    P_std: float
    label_dropout: float
    self_conditioning: float


def loss_fn(
    params: Params, denoiser: Denoiser, objective: Objective, batch: dict, streams: dict
) -> Float[Array, ""]:
    """mean w |F - c_nrm v|^2 / E[w] over the batch; 1 for F = 0 on white data of unit variance."""
    x = denoiser.encode(batch["video"])
    n, sd, si = x.shape[0], denoiser.sigma_data, denoiser.sigma_in
    log_sigma = sigmas.draw_log_sigma(streams["sigma"], n, objective.P_mean, objective.P_std)
    sigma = jnp.exp(log_sigma)
    eps = jax.random.normal(streams["eps"], x.shape, jnp.float32)
    x_sigma = edm.add_noise(x, edm.expand(sigma, x), eps, si)

    given = denoiser.conditions(params, batch)
    if denoiser.low_res is not None:
        low_res, level = denoiser.shrink(x), jax.random.uniform(streams["level"], (n,))
        low_res_eps = jax.random.normal(streams["low_res"], low_res.shape)
        given = denoiser.with_low_res(given, low_res, level, low_res_eps)
    keep_text = 1 - objective.label_dropout
    drop = lambda key: given.drop_text(jax.random.bernoulli(key, keep_text, (n,)))
    passes = drop(streams["label1"]), drop(streams["label2"])
    keep_latents = jax.random.bernoulli(streams["latents"], objective.self_conditioning, (n,))
    dropout = streams["dropout1"], streams["dropout2"]
    F = denoiser.self_conditioned_F(params, x_sigma, log_sigma, passes, keep_latents, dropout)
    mean_w = sigmas.mean_loss_weight_F(objective.P_mean, objective.P_std, sd, si)
    return jnp.mean(edm.loss_F(F, x, eps, sigma, sd, si)) / mean_w


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    denoiser: Denoiser,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    ema_half_life: float,
    ema_ramp: float,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """(state, batch) -> (state, metrics). A step with a non-finite loss or gradient changes
    nothing but the step counter and reports `skipped` = 1.

    Every random draw is a function of (seed, state.step), so a resumed run repeats it.
    """
    streams = keys.streams(seed, state.step, STREAMS)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, denoiser, objective, batch, streams)
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = optim.ema_decay(state.step, ema_half_life, ema_ramp)
    new = (params, optim.update_ema(state.ema, params, decay), opt_state)
    old = (state.params, state.ema, state.opt_state)
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    metrics = {"loss": loss, "grad_norm": grad_norm, "skipped": (~finite).astype(jnp.int32)}
    return TrainState(state.step + 1, *kept), metrics
