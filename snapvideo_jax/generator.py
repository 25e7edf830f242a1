"""The sampler of one model, compiled for one plan: what is asked for, and seeds -> pixels."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, guidance, reconstruction, sampler, sigmas, threshold
from snapvideo_jax.models.conditioning import Conditions
from snapvideo_jax.training import keys


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to sample, with names and defaults of EDM where it has them.

    steps: of Heun's method, or of Euler's where `heun` is False.
    sigma_min, sigma_max, rho: of the grid of noise levels.
    guidance: weight of the text, 0 for none.
    oscillate: it falls to guidance_low at every other step after the first tenth.
    threshold: percentile of dynamic thresholding, 0 for none.
    reconstruction: weight of known frames at low noise (`known_weight`).
    S_churn: noise added as the sampler walks; 0 is the deterministic sampler.
    augmentation: level of noise on the low resolution; read by upsamplers alone.
    frame_rate: frames per second that the network is told; 0 asks for a still image.
    """

    steps: int
    guidance: float
    sigma_min: float
    sigma_max: float
    rho: float
    augmentation: float
    frame_rate: float
    heun: bool = True
    guidance_low: float = 1.0
    oscillate: bool = False
    threshold: float = 0.0
    reconstruction: float = 1.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    @property
    def frame_interval(self) -> float:
        """Seconds between frames; 0 for an image."""
        return 1 / self.frame_rate if self.frame_rate else 0.0


@functools.lru_cache(maxsize=8)
def compiled(denoiser: Denoiser, plan: Plan) -> Callable[..., UInt8[Array, "B T H W 3"]]:
    """A jitted (params, request, seeds) -> videos. One loop, 2 * plan.steps - 1 evaluations.

    `request` holds what a batch holds beside the video; for an upsampler also low_res, uint8
    [B, T, h, w, 3]; with a negative prompt also `negative`, the text entries of a batch, which take
    the place of the dropped text in guidance; with known frames `known` (uint8, as a video) and
    `known_mask` [B, T]. `stream` [B] tells draws of one seed apart. Each sample's noise is a
    function of its own seed and stream, so the batch around it does not change it.
    """
    grid = sigmas.sampling_grid(plan.steps, plan.sigma_min, plan.sigma_max, plan.rho)
    shape = (*denoiser.network.video, 3)

    @jax.jit
    def generate(params: Params, request: dict[str, Array], seeds: Int[Array, " B"]):
        given = denoiser.conditions(params, request)
        streams = Streams(seeds, request["stream"])
        if denoiser.low_res is not None:
            given = _noised(denoiser, given, request["low_res"], streams, plan.augmentation)
        against = _against(denoiser, params, given, request) if plan.guidance else None
        model, si = functools.partial(denoiser.D, params), denoiser.sigma_in
        x = plan.sigma_max * streams.normal("x", shape)
        weights: Any = _weights(plan)
        known = None
        if "known" in request:
            known = _known(denoiser, request, streams.normal("known", shape))
            denoise = reconstruction.guided(model, given, against, known, si)
            x = known.placed(x, jnp.float32(plan.sigma_max), si)
            known_weights = jnp.asarray(known_weight(plan, grid, si))
            weights = reconstruction.Weights(weights, known_weights)
        elif against is None:
            denoise = guidance.conditional(model, given)
        else:
            denoise = guidance.classifier_free(model, given, against)
        if plan.threshold:
            denoise = threshold.dynamic(denoise, plan.threshold)
        if known is not None:
            denoise = reconstruction.keep(denoise, known)
        churn = None
        if plan.S_churn:
            eps = lambda i: streams.normal("churn", shape, i)
            churn = sampler.Churn(eps, plan.S_churn, plan.S_min, plan.S_max, plan.S_noise)
        latents = denoiser.no_latents(len(seeds))
        made = sampler.walk(denoise, x, grid, si, latents, weights, plan.heun, churn)
        return denoiser.decode(made)

    return generate


class Streams(NamedTuple):
    """The random numbers of each sample: functions of its seed, its stream and a name."""

    seeds: Int[Array, " B"]
    stream: Int[Array, " B"]  # 0 for short videos, the window's number in long ones

    def normal(
        self, name: str, shape: tuple[int, ...], step: Int[Array, ""] | int = 0
    ) -> Float[Array, "B ..."]:
        """Unit noise of `shape` for each sample."""

        def draw(seed, stream):
            key = keys.streams(seed, stream, (name,))[name]
            return jax.random.normal(jax.random.fold_in(key, step), shape)

        return jax.vmap(draw)(self.seeds, self.stream)


class Given(NamedTuple):
    """Frames that are known: pixels, one video a prompt, and which frames of them to trust."""

    video: UInt8[np.ndarray, "N T H W 3"]
    mask: Bool[np.ndarray, " T"]


def _known(denoiser: Denoiser, request: dict[str, Array], eps: Array) -> reconstruction.Known:
    x = denoiser.encode(request["known"])
    return reconstruction.Known(request["known_mask"], x, eps)


def _weights(plan: Plan) -> Float[np.ndarray, " N"]:
    """The weight of the text at each step."""
    low = plan.guidance_low if plan.oscillate else plan.guidance
    return guidance.oscillation(plan.steps, plan.guidance, low)


def known_weight(
    plan: Plan, grid: Float[np.ndarray, " N+1"], sigma_in: float
) -> Float[np.ndarray, " N"]:
    """w_r of each step: plan.reconstruction * min(1 + (sigma sigma_in)^2, 30).

    1 is right as sigma -> 0 and too little above: on data of unit variance the exact weight grows
    with the noise in units of x (docs/choices.md has the table).
    """
    noise = np.asarray(grid[:-1], np.float32) * sigma_in
    return plan.reconstruction * np.minimum(1 + noise**2, 30).astype(np.float32)


def _against(
    denoiser: Denoiser, params: Params, given: Conditions, request: dict[str, Any]
) -> Conditions:
    """What guidance leads away from: no text, or that of the negative prompt."""
    if "negative" not in request:
        return given.drop_text(False)
    told = denoiser.conditions(params, request | request["negative"])
    return dataclasses.replace(given, text=told.text, text_mask=told.text_mask)


def _noised(
    denoiser: Denoiser, given: Conditions, low_res: Array, streams: Streams, level: float
) -> Conditions:
    """An upsampler's conditions: the stage before, noised and enlarged."""
    x = edm.from_pixels(low_res)
    levels = jnp.full(len(low_res), level)
    return denoiser.with_low_res(given, x, levels, streams.normal("low_res", x.shape[1:]))
