"""One training step, a pure function: `build.train_program` jits it and donates its state.

With p the parameters, n1, n2 standard normal draws, and the equations of diffusion/edm.py:

    x = video in [-1, 1]
    sigma = exp(P_mean + P_std n1);  eps = n2                                      (draw)
    x_sigma = x / sigma_in + sigma eps;  an upsampler's low resolution is noised too
    c1, c2 = conditions, their text dropped with probability label_dropout, for each pass anew
    latents = second result of network(p, x_sigma, sigma, c1, 0)             no gradient
    latents = latents with probability self_conditioning, else 0
    F = first result of network(p, x_sigma, sigma, c2, latents)
    loss = mean w |F - c_nrm v|^2 / E[w]                                           (loss)
    g = d loss / d p, the mean over micro-batches                     (loss_and_gradient)
    unless loss or |g| is not finite:                                       (train_step)
        p = p - learning_rate * LAMB(clip(g) with Adam's moments, decay of p)
        ema = beta ema + (1 - beta) p
    step = step + 1
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from snapvideo_jax import keys
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, sigmas
from snapvideo_jax.training import optim
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


class LowResNoise(NamedTuple):
    """The noise on an upsampler's low resolution: its level, from 0 to 1, and unit noise."""

    level: Float[Array, " B"]
    eps: Float[Array, "B T h w C"]


class Draws(NamedTuple):
    """What is random about a batch but dropout, a row an example, so that it splits as that does.

    keep_text: of the first and of the second pass. low_res_noise: None for a first stage.
    """

    log_sigma: Float[Array, " B"]
    eps: Float[Array, "B T H W C"]
    keep_text: tuple[Bool[Array, " B"], Bool[Array, " B"]]
    keep_latents: Bool[Array, " B"]
    low_res_noise: LowResNoise | None


def draw(
    denoiser: Denoiser, objective: Objective, video: UInt8[Array, "B T H W 3"], streams: dict
) -> Draws:
    """Draws noise levels, noise and masks for a whole batch; of `video` only the shape counts."""
    x = jax.eval_shape(denoiser.encode, video)
    n, keep_probability = x.shape[0], 1 - objective.label_dropout
    keep = lambda stream, p: jax.random.bernoulli(streams[stream], p, (n,))
    low_res_noise = None
    if denoiser.low_res_size is not None:
        low_res = jax.eval_shape(denoiser.shrink, x)
        low_res_noise = LowResNoise(
            level=jax.random.uniform(streams["level"], (n,)),
            eps=jax.random.normal(streams["low_res"], low_res.shape),
        )
    return Draws(
        log_sigma=sigmas.draw_log_sigma(streams["sigma"], n, objective.P_mean, objective.P_std),
        eps=jax.random.normal(streams["eps"], x.shape, jnp.float32),
        keep_text=(keep("label1", keep_probability), keep("label2", keep_probability)),
        keep_latents=keep("latents", objective.self_conditioning),
        low_res_noise=low_res_noise,
    )


def loss(
    params: Params,
    batch: dict,
    draws: Draws,
    dropout: tuple[PRNGKeyArray, PRNGKeyArray],
    denoiser: Denoiser,
    objective: Objective,
) -> Float[Array, ""]:
    """loss = mean w |F - c_nrm v|^2 / E[w]; 1 for F = 0 on white data of unit variance.

    dropout: keys of the first and of the second pass.
    """
    x = denoiser.encode(batch["video"])
    sigma_data = denoiser.sigma_data
    sigma_in = jnp.asarray(denoiser.sigma_in_of(batch["frame_interval"]))
    log_sigma, eps = draws.log_sigma, draws.eps
    sigma = jnp.exp(log_sigma)
    image = batch["frame_interval"] == 0
    if denoiser.image_sigma_in:
        eps = jnp.where(edm.expand(image, x), eps[:, :1], eps)
    x_sigma = edm.add_noise(x, edm.expand(sigma, x), eps, edm.expand(sigma_in, x))

    conditions = denoiser.conditions(params, batch)
    if draws.low_res_noise is not None:
        level, low_res_eps = draws.low_res_noise
        conditions = denoiser.with_low_res(conditions, denoiser.shrink(x), level, low_res_eps)
    first, second = (conditions.drop_text(keep) for keep in draws.keep_text)
    F = denoiser.self_conditioned_F(
        params,
        x_sigma,
        log_sigma,
        conditions=(first, second),
        keep_latents=draws.keep_latents,
        dropout_keys=dropout,
    )
    losses = edm.loss_F(F, x, eps, sigma, sigma_data, sigma_in)
    mean_w = lambda sigma_in: sigmas.mean_loss_weight_F(
        objective.P_mean, objective.P_std, sigma_data, sigma_in
    )
    if not denoiser.image_sigma_in:
        return jnp.mean(losses) / mean_w(denoiser.sigma_in)
    # Images have another sigma_in, and so another E[w].
    return jnp.mean(
        losses / jnp.where(image, mean_w(denoiser.image_sigma_in), mean_w(denoiser.sigma_in))
    )


def loss_and_gradient(
    params: Params,
    batch: dict[str, Array],
    streams: dict,
    denoiser: Denoiser,
    objective: Objective,
    accumulate: int,
) -> tuple[Float[Array, ""], Params]:
    """Returns the loss of a batch and its gradient, from `accumulate` micro-batches in turn.

    Kernels are cast to the network's dtype one time, before the gradient: the same values, one
    rounding a step. Gradients are averaged and returned in float32. Only the activations of
    one micro-batch are alive at a time, and all draws are the whole batch's, so their number
    changes nothing but memory and time; dropout alone is drawn anew in each.
    """
    value_and_grad = jax.value_and_grad(
        functools.partial(loss, denoiser=denoiser, objective=objective)
    )
    draws = draw(denoiser, objective, batch["video"], streams)
    dropout = streams["dropout1"], streams["dropout2"]
    cast, wide = denoiser.cast_kernels(params), lambda x: x.astype(jnp.float32)
    if accumulate == 1:
        return jax.tree.map(wide, value_and_grad(cast, batch, draws, dropout))

    def add(sums, micro):
        number, (rows, their_draws) = micro
        dropout_keys = jax.tree.map(lambda key: jax.random.fold_in(key, number), dropout)
        terms = value_and_grad(cast, rows, their_draws, dropout_keys)
        return jax.tree.map(jnp.add, sums, terms), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (jnp.zeros(()), params))
    micros = jnp.arange(accumulate), micro_batches((batch, draws), accumulate)
    sums, _ = jax.lax.scan(add, zeros, micros)
    return jax.tree.map(lambda total: total / accumulate, sums)


def micro_batches(tree: Any, number: int) -> Any:
    """Deals [B, ...] out to [number, B / number, ...]: row b goes to micro-batch b % number.

    So each takes the same share of every device's rows, and no row moves between devices.
    """
    deal = lambda x: jnp.moveaxis(x.reshape((-1, number) + x.shape[1:]), 1, 0)
    return jax.tree.map(deal, tree)


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
    accumulate: int,
) -> tuple[TrainState, Metrics]:
    """Returns the next state, and metrics. A step with a non-finite loss or gradient changes
    nothing but the step counter and reports `skipped` = 1.

    Every random draw is a function of (seed, state.step), so a resumed run repeats it. The batch
    size is a multiple of `accumulate`, the number of micro-batches whose gradients are added.
    """
    streams = keys.streams(seed, state.step, STREAMS)
    with jax.named_scope("loss"):
        mean_loss, grads = loss_and_gradient(
            state.params, batch, streams, denoiser, objective, accumulate
        )
    grad_norm = optim.global_norm(grads)
    finite = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
    if_finite = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    # A profile names a fused loop after its last operation, so the choice is in the scopes too.
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_params = if_finite(params, state.params)
        opt_state = if_finite(opt_state, state.opt_state)
    with jax.named_scope("ema"):
        decay = optim.ema_decay(state.step, ema_half_life, ema_ramp)
        ema = if_finite(optim.update_ema(state.ema, params, decay), state.ema)
    metrics = {"loss": mean_loss, "grad_norm": grad_norm, "skipped": (~finite).astype(jnp.int32)}
    return TrainState(state.step + 1, new_params, ema, opt_state), metrics
