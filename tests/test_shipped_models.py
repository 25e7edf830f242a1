"""models/: what the repository ships is small, whole, and draws what it is asked for."""

import json
from pathlib import Path

import pytest

import snapvideo_jax
from snapvideo_jax import build
from snapvideo_jax.evaluation import oracle
from tests.in_process import launch

MODELS = Path(__file__).parent.parent / "models"
PROMPTS = [
    "a red cross moves up slowly",
    "a blue circle moves right quickly",
    "a green triangle moves down slowly",
    "a yellow cross moves left quickly",
]


def test_the_models_are_below_12_mb_together():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 12e6


def all_right(sampler, videos):
    """The share of videos that show all that their prompt says."""
    config = sampler.model.config
    intervals = [1 / config.sampling.frame_rate] * len(PROMPTS)
    return oracle.score(list(videos), PROMPTS, build.world(config), intervals)["all"]


def test_both_stages_draw_shape_color_direction_and_speed():
    """With a quarter of their steps, so that a test may wait for it."""
    first, upsampler = (snapvideo_jax.load(MODELS / n) for n in ("shapes", "shapes_upsampler"))
    small = first(PROMPTS, steps=8)
    large = upsampler(PROMPTS, low_res=small, steps=4)
    assert small.shape == (4, 8, 32, 32, 3) and large.shape == (4, 8, 64, 64, 3)
    assert all_right(first, small) >= 0.75 and all_right(upsampler, large) >= 0.75


@pytest.mark.slow
def test_evaluation_of_both_stages_looks_for_shapes_of_the_last_one_s_size(tmp_path):
    both = f"--checkpoint={MODELS / 'shapes'}", f"--upsampler={MODELS / 'shapes_upsampler'}"
    few = "--num_samples=2", "--steps=8", f"--cache={tmp_path / 'cache'}"
    launch("evaluate", *both, *few, f"--out={tmp_path / 'r.json'}")
    values = json.loads((tmp_path / "r.json").read_text())["values"]
    assert values["seen: present"]["value"] == values["held out: present"]["value"] == 1
