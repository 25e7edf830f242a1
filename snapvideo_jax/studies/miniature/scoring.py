"""How good a small model is: what it leaves of noise, and what its samples show."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from snapvideo_jax import build
from snapvideo_jax.data.world import World
from snapvideo_jax.evaluation import distances, moments, noise_levels, oracle, sets
from snapvideo_jax.evaluation.features import random_conv
from snapvideo_jax.sampling.generate import generate
from snapvideo_jax.sampling.trained import Trained
from snapvideo_jax.studies.learner import held_out

VIDEOS = 128  # real ones, in a Frechet distance and under noise
PROMPTS = 64  # that training shows, and as many that it never shows
FACTORS = ("present", "shape", "color", "direction", "all")  # of the oracle
GUIDANCE = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # Figure 5
SAMPLER_STEPS = (4, 8, 16, 32)  # Figure 6


def scores(model: Trained, **changes: float) -> dict[str, Any]:
    """Returns the oracle's rates for prompts seen and held out, and a Frechet distance.

    changes: of the config's `sampling`.
    """
    world, seed = build.world(model.config), model.config.seed
    settings = build.sampler_settings(model.config, **changes)
    seen, unseen = (sets.shapes_prompts(world, PROMPTS, held, seed) for held in (False, True))
    videos = generate(model, settings, [*seen, *unseen], range(2 * PROMPTS), 2 * PROMPTS)
    return {
        "seen": _rates(videos[:PROMPTS], seen, settings.frame_interval, world),
        "held_out": _rates(videos[PROMPTS:], unseen, settings.frame_interval, world),
        "frechet": frechet(real_videos(world, VIDEOS), videos),
    }


def _rates(
    videos: UInt8[np.ndarray, "N T H W 3"],
    prompts: Sequence[str],
    frame_interval: float,
    world: World,
) -> dict[str, float | None]:
    intervals = [frame_interval] * len(prompts)
    scored = oracle.score(list(videos), prompts, frame_intervals=intervals, world=world)
    return {name: scored[name] for name in FACTORS}


def sweeps(model: Trained) -> dict[str, Any]:
    """Scores each guidance weight of Figure 5, and each number of steps of Figure 6."""
    return {
        "guidance": [{"w": w, **scores(model, guidance=w)} for w in GUIDANCE],
        "sampler_steps": [{"steps": N, **scores(model, steps=N)} for N in SAMPLER_STEPS],
    }


def real_videos(world: World, num: int) -> UInt8[np.ndarray, "N T H W 3"]:
    """Draws `num` videos of the test split, every other one of a held-out composition."""
    real = sets.real_shapes(world, world.frame_rates[0])
    return np.stack([real.example(i)[0] for i in range(num)])


def frechet(
    real: UInt8[np.ndarray, "N T H W 3"], generated: UInt8[np.ndarray, "M T H W 3"]
) -> float:
    """Returns the Frechet distance of random convolutions' features, which is no FVD."""
    return distances.frechet_distance(
        *(moments.of(random_conv.features(videos)) for videos in (real, generated))
    )


def losses(model: Trained) -> list[float]:
    """Returns the mean loss at each of `noise_levels.LEVELS` on held-out compositions."""
    batch = held_out(model.config, model.text, VIDEOS)
    of_videos = noise_levels.program(model.denoiser, model.mesh)
    values = of_videos(model.params, batch, jnp.arange(VIDEOS))
    return np.asarray(values, np.float64).mean(axis=0).tolist()
