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

from snapvideo_jax import keys
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, guidance, reconstruction, sampler, sigmas, threshold
from snapvideo_jax.models.conditioning import Conditions


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


STRETCHES = 16  # of the evaluations, between which progress can be told


class Walk(NamedTuple):
    """A sampler that can pause: three functions of arrays, to be jitted.

    start: (request, seeds) -> state. go: (params, request, seeds, state, first, last) -> state
    after the evaluations first .. last - 1, of 0 .. `evaluations` - 1. finish: state -> videos.
    The first axis of every leaf of a state is the batch's.
    """

    start: Callable[..., sampler.State]
    go: Callable[..., sampler.State]
    finish: Callable[[sampler.State], UInt8[Array, "B T H W 3"]]
    evaluations: int

    def videos(
        self,
        params: Params,
        request: dict[str, Array],
        seeds: Int[Array, " B"],
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> UInt8[Array, "B T H W 3"]:
        """The whole walk; `tell(evaluations done, of how many)` on the way, not at its end.

        The devices do not wait for the host: a stretch is told of once the next is under way.
        """
        state = self.start(request, seeds)
        length = -(-self.evaluations // STRETCHES)
        for first in range(0, self.evaluations, length):
            before, last = state, min(first + length, self.evaluations)
            state = self.go(params, request, seeds, state, first, last)
            if first:
                jax.block_until_ready(before.D)
                tell(first, self.evaluations)
        return self.finish(state)


def walk(denoiser: Denoiser, plan: Plan) -> Walk:
    """The sampler of `denoiser` as `plan` says: 2 * plan.steps - 1 evaluations (Euler: plan.steps).

    `request` holds what a batch holds beside the video; for an upsampler also low_res, uint8
    [B, T, h, w, 3]; with a negative prompt also `negative`, the text entries of a batch, which take
    the place of the dropped text in guidance; with known frames `known` (uint8, as a video) and
    `known_mask` [B, T]. `stream` [B] tells draws of one seed apart. Each sample's noise is a
    function of its own seed and stream, so the batch around it does not change it.
    """
    grid = sigmas.sampling_grid(plan.steps, plan.sigma_min, plan.sigma_max, plan.rho)
    shape = (*denoiser.network.video, 3)

    def start(request: dict[str, Array], seeds: Int[Array, " B"]) -> sampler.State:
        streams = Streams(seeds, request["stream"])
        x = plan.sigma_max * streams.normal("x", shape)
        if "known" in request:
            known = _known(denoiser, request, streams.normal("known", shape))
            x = known.insert(x, jnp.float32(plan.sigma_max), denoiser.sigma_in)
        return sampler.State(x, x, jnp.zeros_like(x), denoiser.no_latents(len(seeds)))

    def go(
        params: Params, request: dict[str, Array], seeds: Int[Array, " B"],
        state: sampler.State, first: Int[Array, ""], last: Int[Array, ""],
    ) -> sampler.State:  # fmt: skip
        given = denoiser.conditions(params, request)
        streams = Streams(seeds, request["stream"])
        if denoiser.low_res is not None:
            given = _noised(denoiser, given, request["low_res"], streams, plan.augmentation)
        against = _against(denoiser, params, given, request) if plan.guidance else None
        model, si = functools.partial(denoiser.D, params), denoiser.sigma_in
        weights: Any = _weights(plan)
        known = None
        if "known" in request:
            known = _known(denoiser, request, streams.normal("known", shape))
            denoise = reconstruction.guide(model, given, against, known, si)
            known_weights = jnp.asarray(known_weight(plan, grid, si))
            weights = reconstruction.Weights(weights, known_weights)
        elif against is None:
            denoise = guidance.conditional(model, given)
        else:
            denoise = guidance.classifier_free(model, given, against)
        if plan.threshold:
            denoise = threshold.dynamic(denoise, plan.threshold)
        if known is not None:
            denoise = reconstruction.hold_known(denoise, known)
        churn = None
        if plan.S_churn:
            eps = lambda i: streams.normal("churn", shape, i)
            churn = sampler.Churn(eps, plan.S_churn, plan.S_min, plan.S_max, plan.S_noise)
        return sampler.stretch(denoise, state, first, last, grid, si, weights, plan.heun, churn)

    finish = lambda state: denoiser.decode(state.D)
    return Walk(start, go, finish, sampler.evaluations(plan.steps, plan.heun))


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
