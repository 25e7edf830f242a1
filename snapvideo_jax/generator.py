"""The sampler of one model for one set of settings, as pure functions of arrays.

`start` draws the first noise, `sampler_inputs` says what `diffusion.sampler` runs, and the
denoiser's `decode` turns the last estimate into pixels. `build.sampler_program` compiles the three.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from snapvideo_jax import keys
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, guidance, reconstruction, sampler, sigmas, threshold
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import Conditions


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How to sample: the fields of the config's `sampling`, with EDM's names where it has them.

    steps: of the solver.
    solver: "heun" (2 N - 1 calls), "euler" or "dpmpp_2m" (N calls).
    sigma_min, sigma_max, rho: of the grid of noise levels.
    guidance: weight of the text, 0 for none.
    guidance_sigma_min, guidance_sigma_max: noise levels between which there is guidance; at the
        others the denoiser is called without, at half the cost.
    oscillate: whether it falls to guidance_low at every other step after the first tenth.
    threshold: percentile of dynamic thresholding, 0 for none.
    reconstruction: weight of known frames at low noise (`reconstruction_weights`).
    S_churn: noise added on the way; 0 is the deterministic sampler.
    augmentation: level of noise on the low resolution; read by upsamplers alone.
    frame_rate: frames per second that the network reads; 0 is a still image.
    """

    steps: int
    guidance: float
    sigma_min: float
    sigma_max: float
    rho: float
    augmentation: float
    frame_rate: float
    solver: sampler.Solver
    guidance_low: float
    guidance_sigma_min: float
    guidance_sigma_max: float
    oscillate: bool
    threshold: float
    reconstruction: float
    S_churn: float
    S_min: float
    S_max: float
    S_noise: float

    def __post_init__(self):
        """Raises ConfigError, one line, for settings that do not go together."""
        low, high = self.guidance_sigma_min, self.guidance_sigma_max
        if low >= high:
            raise ConfigError(
                f"guidance_sigma_min={low:g} must be below guidance_sigma_max={high:g}; for no "
                "guidance at all give guidance=0"
            )
        if self.solver == "dpmpp_2m" and self.S_churn:
            raise ConfigError(
                f"S_churn={self.S_churn:g}: solver=dpmpp_2m adds no noise on the way; give "
                "S_churn=0, or another solver"
            )
        if self.solver == "dpmpp_2m" and self.guidance and self.oscillate:
            raise ConfigError(
                "oscillate=True: solver=dpmpp_2m extrapolates from each step to the next, which "
                "would make the oscillation larger; give oscillate=False, or another solver"
            )

    @property
    def frame_interval(self) -> float:
        """Seconds between frames; 0 for an image."""
        return 1 / self.frame_rate if self.frame_rate else 0.0

    @property
    def num_calls(self) -> int:
        """How often a video's sampler calls the guided denoiser."""
        return sampler.num_calls(self.steps, self.solver)

    @property
    def num_evaluations(self) -> int:
        """How often a video goes through the network: twice in a guided call."""
        levels = sampler.call_levels(self.grid, self.solver)
        inside = (self.guidance_sigma_min < levels) & (levels <= self.guidance_sigma_max)
        return len(levels) + int(np.sum(inside)) * bool(self.guidance)

    @property
    def guides_everywhere(self) -> bool:
        """Whether all noise levels of the grid are where there is guidance."""
        covers_bottom = self.guidance_sigma_min < self.sigma_min
        return covers_bottom and self.sigma_max <= self.guidance_sigma_max

    @property
    def grid(self) -> Float[np.ndarray, " levels"]:
        """The noise levels, falling to 0."""
        return sigmas.sampling_grid(self.steps, self.sigma_min, self.sigma_max, self.rho)


class KnownFrames(NamedTuple):
    """Frames that a sample keeps: pixels of N videos (or of 1, for all prompts), and which."""

    video: UInt8[np.ndarray, "N T H W 3"]
    mask: Bool[np.ndarray, " T"]


# What a sampler reads: all that a batch of training holds but the video, and
#   window      int32 [B], 0 for short videos, the window's number in long ones;
#   low_res     uint8 [B, T, h, w, 3], what an upsampler enlarges;
#   negative    the text entries of a batch, in the place of no text in guidance;
#   known       uint8 [B, T, H, W, 3] and known_mask [B, T], frames to keep.
Request = dict[str, Any]


class Streams(NamedTuple):
    """The random numbers of each sample: functions of its seed, its window and a name.

    So the batch around a sample does not change its noise.
    """

    seeds: Int[Array, " B"]
    window: Int[Array, " B"]

    def normal(
        self, name: str, shape: tuple[int, ...], step: Int[Array, ""] | int = 0
    ) -> Float[Array, "B ..."]:
        """Draws unit noise of `shape` for each sample."""

        def draw(seed, window):
            key = keys.streams(seed, window, (name,))[name]
            return jax.random.normal(jax.random.fold_in(key, step), shape)

        return jax.vmap(draw)(self.seeds, self.window)


def start(
    denoiser: Denoiser, settings: SamplerSettings, request: Request, seeds: Int[Array, " B"]
) -> sampler.SamplerState:
    """Draws the noise that sampling starts from, with the known frames in it."""
    streams = Streams(seeds, request["window"])
    x = settings.sigma_max * streams.normal("x", denoiser.x_shape)
    if "known" in request:
        known = _known(denoiser, request, streams)
        x = known.insert(x, jnp.float32(settings.sigma_max), denoiser.sigma_in)
    latents = denoiser.no_latents(seeds.shape[0])
    return sampler.start(x, carry=latents)


def sampler_inputs(
    denoiser: Denoiser,
    settings: SamplerSettings,
    params: Params,
    request: Request,
    seeds: Int[Array, " B"],
) -> sampler.SamplerInputs:
    """Returns the guided denoiser, its weights at each step, the grid and the churn."""
    streams = Streams(seeds, request["window"])
    conditions, uncond = _conditions(denoiser, settings, params, request, streams)
    D = functools.partial(denoiser.D, params)
    rescale = threshold.rescaler(settings.threshold)
    known = _known(denoiser, request, streams) if "known" in request else None
    weights: Any = guidance_weights(settings)
    if known is not None:
        known_weights = reconstruction_weights(settings, denoiser.sigma_in)
        weights = reconstruction.Guidance(weights, jnp.asarray(known_weights))

    def guide(uncond: Conditions | None) -> sampler.Denoise:
        if known is not None:
            return reconstruction.guide(
                D, conditions, uncond, rescale, known=known, sigma_in=denoiser.sigma_in
            )
        if uncond is None:
            return guidance.conditional(D, conditions, rescale)
        return guidance.classifier_free(D, conditions, uncond, rescale)

    denoise = guide(uncond)
    if uncond is not None and not settings.guides_everywhere:
        interval = settings.guidance_sigma_min, settings.guidance_sigma_max
        denoise = guidance.on_interval(denoise, guide(None), *interval)

    return sampler.SamplerInputs(
        denoise=denoise,
        grid=settings.grid,
        sigma_in=denoiser.sigma_in,
        guidance=weights,
        solver=settings.solver,
        churn=_churn(settings, streams, denoiser.x_shape),
    )


def guidance_weights(settings: SamplerSettings) -> Float[np.ndarray, " N"]:
    """Returns the weight of the text at each step."""
    low = settings.guidance_low if settings.oscillate else settings.guidance
    return guidance.oscillation(settings.steps, settings.guidance, low)


def reconstruction_weights(settings: SamplerSettings, sigma_in: float) -> Float[np.ndarray, " N"]:
    """w_r of each step = settings.reconstruction * min(1 + (sigma sigma_in)^2, 30).

    1 is right as sigma -> 0 and too little above: on data of unit variance the exact weight grows
    with the noise in units of x (docs/choices.md has the table).
    """
    noise = settings.grid[:-1] * sigma_in
    return settings.reconstruction * np.minimum(1 + noise**2, 30).astype(np.float32)


def _conditions(
    denoiser: Denoiser,
    settings: SamplerSettings,
    params: Params,
    request: Request,
    streams: Streams,
) -> tuple[Conditions, Conditions | None]:
    """Returns what D is conditioned on, and what guidance leads away from, if there is any."""
    conditions = denoiser.conditions(params, request)
    if denoiser.low_res_size is not None:
        low_res = edm.from_pixels(request["low_res"])
        augmentation = jnp.full(low_res.shape[0], settings.augmentation)
        eps = streams.normal("low_res", low_res.shape[1:])
        conditions = denoiser.with_low_res(conditions, low_res, augmentation, eps)
    uncond = None
    if settings.guidance and "negative" in request:
        negative = denoiser.conditions(params, request | request["negative"])
        text = {"text": negative.text, "text_mask": negative.text_mask}
        uncond = dataclasses.replace(conditions, **text)
    elif settings.guidance:
        uncond = conditions.drop_text(False)
    return conditions, uncond


def _known(denoiser: Denoiser, request: Request, streams: Streams) -> reconstruction.Known:
    eps = streams.normal("known", denoiser.x_shape)
    return reconstruction.Known(request["known_mask"], denoiser.encode(request["known"]), eps)


def _churn(
    settings: SamplerSettings, streams: Streams, shape: tuple[int, ...]
) -> sampler.Churn | None:
    if not settings.S_churn:
        return None
    return sampler.Churn(
        eps=lambda step: streams.normal("churn", shape, step),
        S_churn=settings.S_churn,
        S_min=settings.S_min,
        S_max=settings.S_max,
        S_noise=settings.S_noise,
    )
