"""models/: what the repository ships is small, whole, and draws what it is asked for."""

from pathlib import Path

import snapvideo_jax
from snapvideo_jax import build
from snapvideo_jax.evaluation import oracle

MODELS = Path(__file__).parent.parent / "models"
PROMPTS = [
    "a red cross moves up slowly",
    "a blue circle moves right quickly",
    "a green triangle moves down slowly",
    "a yellow cross moves left quickly",
]


def test_the_models_are_below_12_mb_together():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 12e6


def test_the_first_stage_draws_shape_color_direction_and_speed():
    """With a quarter of its steps, so that a test may wait for it."""
    sampler = snapvideo_jax.load(MODELS / "shapes")
    videos = sampler(PROMPTS, steps=8)
    config = sampler.model.config
    scores = oracle.score(
        list(videos),
        PROMPTS,
        frame_intervals=[1 / config.sampling.frame_rate] * len(PROMPTS),
        world=build.world(config),
    )
    assert videos.shape == (4, 8, 32, 32, 3)
    assert scores["all"] >= 0.75
