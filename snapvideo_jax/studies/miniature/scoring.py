"""How good a small model is: what it leaves of noise, and what its samples show."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from snapvideo_jax import build
from snapvideo_jax.data import shapes
from snapvideo_jax.data.world import World
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm
from snapvideo_jax.evaluation import distances, moments, protocol
from snapvideo_jax.evaluation.features import random_conv
from snapvideo_jax.sampling.generate import generate
from snapvideo_jax.sampling.trained import Trained
from snapvideo_jax.studies.learner import Batch

NOISE_LEVELS = (0.5, 1.0, 2.0, 4.0, 8.0)  # u = sigma sigma_in, in units of x
VIDEOS = 128  # real ones in a Frechet distance, and those whose noise is removed
PROMPTS = 64  # that training shows, and as many that it never shows
FACTORS = ("present", "shape", "color", "direction", "all")  # of the oracle
GUIDANCE = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # Figure 5
SAMPLER_STEPS = (4, 8, 16, 32, 64)  # Figure 6


def scores(model: Trained, **changes: float) -> dict[str, Any]:
    """Returns the oracle's rates for prompts seen and held out, and a Frechet distance.

    changes: of the config's `sampling`.
    """
    world, seed = build.world(model.config), model.config.seed
    settings = build.sampler_settings(model.config, **changes)
    videos = []

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> UInt8[np.ndarray, "N T H W 3"]:
        videos.append(generate(model, settings, prompts, seeds, len(prompts)))
        return videos[0]

    oracle = protocol.shapes_protocol(world, settings.frame_interval, sample, PROMPTS, seed)
    seen = oracle.report["oracle"]
    return {
        "seen": {name: seen[name] for name in FACTORS},
        "held_out": {name: seen["held_out"][name] for name in FACTORS},
        "frechet": frechet(real_videos(world, seed, VIDEOS), videos[0]),
    }


def sweeps(model: Trained) -> dict[str, Any]:
    """Scores each guidance weight of Figure 5, and each number of steps of Figure 6."""
    return {
        "guidance": [{"w": w, **scores(model, guidance=w)} for w in GUIDANCE],
        "sampler_steps": [{"steps": N, **scores(model, steps=N)} for N in SAMPLER_STEPS],
    }


def real_videos(world: World, seed: int, num: int) -> UInt8[np.ndarray, "N T H W 3"]:
    """Draws `num` videos of the test split: half of seen compositions and half of held-out ones."""
    places = range(shapes.TEST_START, shapes.TEST_START + num)
    draw = functools.partial(shapes.draw_scene, world, seed, image=False)
    return np.stack([shapes.render(world, draw(g, held_out=g % 2 == 1)) for g in places])


def frechet(
    real: UInt8[np.ndarray, "N T H W 3"], generated: UInt8[np.ndarray, "M T H W 3"]
) -> float:
    """Returns the Frechet distance of random convolutions' features, which is no FVD."""
    return distances.frechet_distance(
        *(moments.of(random_conv.features(videos)) for videos in (real, generated))
    )


def denoising_errors(denoiser: Denoiser, params: Params, batch: Batch) -> list[float]:
    """Returns the mean of |D - x|^2 a number, at each of NOISE_LEVELS.

    The noise is u in units of x whatever sigma_in is, and the same for all networks; latents start
    from those of a first pass.
    """
    error = jax.jit(functools.partial(_error, denoiser=denoiser))
    return [
        float(error(params, batch, jnp.float32(u), jax.random.key(i)))
        for i, u in enumerate(NOISE_LEVELS)
    ]


def _error(
    params: Params,
    batch: dict[str, Array],
    u: Float[Array, ""],
    key: PRNGKeyArray,
    denoiser: Denoiser,
) -> Float[Array, ""]:
    x, conditions = denoiser.encode(batch["video"]), denoiser.conditions(params, batch)
    sigma, eps = u / denoiser.sigma_in, jax.random.normal(key, x.shape)
    x_sigma = edm.add_noise(x, sigma, eps, denoiser.sigma_in)
    _, latents = denoiser.D(params, x_sigma, sigma, conditions, denoiser.no_latents(len(x)))
    D, _ = denoiser.D(params, x_sigma, sigma, conditions, latents)
    return jnp.square(D - x).mean()
