"""Two stages: an upsampler starts from the first one's weights and enlarges its samples."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.files import video
from snapvideo_jax.sampling.generate import generate
from snapvideo_jax.sampling.long_video import Span, generate_long
from snapvideo_jax.sampling.trained import load
from snapvideo_jax.train import train
from tests import tiny
from tests.launch.test_entry import ENVIRONMENT, ROOT

PROMPTS, SEEDS = ["a red circle moves left", "a blue square"], [5, 6]


@pytest.fixture(scope="module")
def runs(trained_folder, tmp_path_factory):
    """Folders of a first stage and of an upsampler that started from it, and the latter's lines."""
    upsampler, lines = tmp_path_factory.mktemp("upsampler"), []
    config = tiny.get_upsampler_config()
    config.training.start_from = str(trained_folder)
    train(config, upsampler, lines.append)
    return trained_folder, upsampler, lines


@pytest.fixture(scope="module")
def stages(runs):
    return load(runs[0]), load(runs[1])


def enlarge(upsampler, low_res, seeds=SEEDS, **changes):
    settings = build.sampler_settings(upsampler.config, **changes)
    return generate(upsampler, settings, PROMPTS, seeds, 2, low_res=low_res)


@pytest.fixture(scope="module")
def low_res(stages):
    settings = build.sampler_settings(stages[0].config)
    return generate(stages[0], settings, PROMPTS, SEEDS, 2)


def test_the_upsampler_starts_from_the_first_stage_s_weights(runs, stages):
    assert any(line.startswith("weights from step 3 of") for line in runs[2])
    old, new = stages[0].params["network"]["blocks"], stages[1].params["network"]["blocks"]
    # Three steps of warm-up move a leaf by percents; two random kernels are far apart.
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        before, after = np.asarray(before), np.asarray(after)
        assert np.linalg.norm(after - before) < 0.2 * (1 + np.linalg.norm(before))


def test_it_makes_large_videos_that_depend_on_the_small_ones(stages, low_res):
    large = enlarge(stages[1], low_res)
    assert large.shape == (2, 2, 32, 32, 3) and large.dtype == np.uint8
    assert np.array_equal(enlarge(stages[1], low_res), large)
    assert not np.array_equal(enlarge(stages[1], low_res[::-1]), large)


def test_the_level_of_augmentation_and_the_seed_change_the_noise_on_them(stages, low_res):
    large = enlarge(stages[1], low_res)
    assert not np.array_equal(enlarge(stages[1], low_res, augmentation=0.9), large)
    assert not np.array_equal(enlarge(stages[1], low_res, seeds=[7, 6])[0], large[0])


def test_stages_that_do_not_fit_are_refused(stages, low_res):
    settings = build.sampler_settings(stages[1].config)
    with pytest.raises(ConfigError, match="this checkpoint is an upsampler"):
        generate(stages[1], settings, PROMPTS, SEEDS, 2)
    with pytest.raises(ConfigError, match=r"enlarges videos of \(2, 16, 16\).*makes \(2, 8, 16\)"):
        enlarge(stages[1], low_res[:, :, :8])
    with pytest.raises(ConfigError, match="this checkpoint is a first stage"):
        generate(stages[0], settings, PROMPTS, SEEDS, 2, low_res=low_res)


def test_a_long_video_is_enlarged_whole(stages, low_res):
    long = np.concatenate([low_res, low_res[:, ::-1]], axis=1)[:, :3]
    settings, span = build.sampler_settings(stages[1].config), Span(0.75, (4.0,))
    make = lambda small: generate_long(
        stages[1], settings, PROMPTS, SEEDS, 2, span=span, low_res=small
    )
    large = make(long)
    assert large.shape == (2, 3, 32, 32, 3)
    assert np.array_equal(large[:, :2], enlarge(stages[1], low_res, frame_rate=4.0))
    long[:, 2] = 255 - long[:, 2]
    other = make(long)
    assert np.array_equal(other[:, :2], large[:, :2])
    assert not np.array_equal(other[:, 2], large[:, 2])


def test_one_command_runs_both_stages(runs, tmp_path):
    command = [
        *(sys.executable, "-m", "launch.sample", f"--prompt={PROMPTS[0]}", f"--out={tmp_path}"),
        *(f"--checkpoint={runs[0]}", f"--upsampler={runs[1]}", "--upsampler_steps=2"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames, height, width, _ = video.read_video(tmp_path / "00000.mp4").shape
    assert frames == 2 and height == width and height % 32 == 0
    how = json.loads((tmp_path / "samples.json").read_text())
    assert how["steps"] == 3 and how["upsampler"]["steps"] == 2
