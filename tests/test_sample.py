"""Sampling from a run's folder: same seed, same pixels, whatever is beside it in the batch."""

import numpy as np
import pytest

from snapvideo_jax import sample
from snapvideo_jax.errors import StorageError
from snapvideo_jax.training import loop
from tests import tiny

PROMPTS = ["a red circle moves left", "a blue square", "", "a green triangle moves up"]


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny.get_config()
    config.training.steps = 3
    loop.train(config, folder, lambda line: None)
    return folder


@pytest.fixture(scope="module")
def trained(trained_folder):
    return sample.load(trained_folder)


@pytest.fixture(scope="module")
def videos(trained):
    plan = sample.plan_from(trained.config)
    return sample.generate(trained, plan, PROMPTS, [5, 6, 7, 8], batch_size=4)


def test_samples_are_videos_of_the_size_of_the_data(videos):
    assert videos.shape == (4, 2, 16, 16, 3) and videos.dtype == np.uint8


def test_the_same_seed_gives_the_same_pixels(trained, videos):
    again = sample.generate(trained, sample.plan_from(trained.config), PROMPTS, [5, 6, 7, 8], 4)
    assert np.array_equal(again, videos)


def test_another_seed_gives_other_pixels(trained, videos):
    other = sample.generate(trained, sample.plan_from(trained.config), PROMPTS, [9, 6, 7, 8], 4)
    assert not np.array_equal(other[0], videos[0]) and np.array_equal(other[1:], videos[1:])


def test_a_sample_does_not_depend_on_its_batch(trained, videos):
    plan = sample.plan_from(trained.config)
    swapped = sample.generate(trained, plan, [PROMPTS[3], PROMPTS[0]], [8, 5], batch_size=4)
    assert np.array_equal(swapped, videos[[3, 0]])


def test_the_prompt_matters_where_there_is_guidance(trained, videos):
    plan = sample.plan_from(trained.config)
    other = sample.generate(trained, plan, ["a yellow square", *PROMPTS[1:]], [5, 6, 7, 8], 4)
    assert not np.array_equal(other[0], videos[0])


def test_flags_replace_single_fields_of_the_plan(trained):
    plan = sample.plan_from(trained.config, steps=7, guidance=None, frame_rate=0.0)
    assert (plan.steps, plan.guidance, plan.frame_interval) == (7, 1.0, 0.0)


def test_only_the_ema_is_restored(trained):
    assert set(trained.params) == {"network", "text_encoder"}


def test_a_checkpoint_that_is_not_there_names_those_that_are(trained_folder):
    with pytest.raises(StorageError, match="holds no checkpoint 2; there are: 3"):
        sample.load(trained_folder, step=2)


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(StorageError, match="holds no checkpoint; train one"):
        sample.load(tmp_path)
