"""A folder becomes a function of prompts in three lines, which are those of the docstring."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import snapvideo_jax
from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.export import export_folder
from snapvideo_jax.sampling import text_to_video, trained
from snapvideo_jax.sampling.generate import generate

PROMPTS = ["a red circle moves left", "a blue square"]


@pytest.fixture(scope="module")
def folder(trained_folder, tmp_path_factory):
    """The toy run, exported to a folder of the name in the docstring."""
    folder = tmp_path_factory.mktemp("load") / "exported"
    model = trained.load(trained_folder)
    vocabulary = build.vocabulary_path(model.config, trained_folder)
    config = model.config.to_dict()
    export_folder.write(folder, config, model.step, model.params, vocabulary)
    return folder


@pytest.fixture(scope="module")
def shown(folder):
    """What the three lines of the docstring of `load` leave behind."""
    [example] = doctest.DocTestFinder().find(snapvideo_jax.load, "load", globs={})
    assert len(example.examples) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        failed, tried = doctest.DocTestRunner().run(example, clear_globs=False)
    assert (failed, tried) == (0, 3)
    return example.globs


def test_the_docstrings_example_makes_the_videos_of_the_run(shown, trained_folder):
    model = trained.load(trained_folder)
    settings = build.sampler_settings(model.config)
    expected = generate(model, settings, PROMPTS, [7, 7], batch_size=2)
    assert shown["videos"].dtype == np.uint8 and np.array_equal(shown["videos"], expected)


def test_a_run_is_loaded_as_its_export_is(shown, trained_folder):
    videos = snapvideo_jax.load(trained_folder, step=3)(PROMPTS, seeds=7)
    assert np.array_equal(videos, shown["videos"])


def test_settings_and_seeds_are_keywords(shown):
    model = shown["text_to_video"]
    one = model(PROMPTS[1], seeds=[7], batch_size=2)
    assert np.array_equal(one, shown["videos"][1:])
    other = model(PROMPTS, seeds=7, guidance=0.0, frame_rate=8.0)
    assert other.shape == one.repeat(2, 0).shape and not np.array_equal(other, shown["videos"])


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("there is nothing to show", {"prompts": []}),
        ("there are 3 seeds for 2 prompts", {"seeds": [1, 2, 3]}),
        ("seeds=-1 must be a whole number from 0", {"seeds": -1}),
        ("'step' is no setting of the sampler; those are ..steps.", {"step": 3}),
        ("steps=0 must be a whole number from 1", {"steps": 0}),
        ("guidance=nan must be a number from 0", {"guidance": float("nan")}),
        ("this checkpoint is a first stage", {"low_res": np.zeros((2, 2, 8, 8, 3), np.uint8)}),
    ],
)
def test_what_the_sampler_cannot_use_is_one_line(shown, reason, arguments):
    with pytest.raises(ConfigError, match=reason) as error:
        shown["text_to_video"](**{"prompts": PROMPTS} | arguments)
    assert "\n" not in str(error.value)


def test_the_package_alone_imports_neither_jax_nor_anything_else_of_size():
    code = "import sys, snapvideo_jax; print({'jax', 'numpy', 'flax'} & set(sys.modules))"
    root = Path(text_to_video.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
