"""Inception score and CLIPSIM: exact cases, and torch-fidelity's figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import scores
from tests.evaluation import inputs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics/distances.json").read_text())


def test_the_inception_score_agrees_with_torch_fidelity():
    logits = inputs.logits(503, 101, 3)
    ordered, shuffled = (scores.inception_score(logits, seed=seed) for seed in (None, 2020))
    np.testing.assert_allclose(ordered, GOLDEN["is"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(shuffled, GOLDEN["is_shuffled"], rtol=0, atol=1e-6)


def test_certain_and_even_classes_score_their_number():
    sure = np.tile(np.where(np.eye(7), 0.0, -1e4), (20, 1))
    np.testing.assert_allclose(scores.inception_score(sure, splits=10), (7, 0), atol=1e-12)


def test_one_class_scores_1():
    assert scores.inception_score(np.tile(np.arange(5.0), (40, 1))).mean == pytest.approx(1)


def test_clipsim_is_the_mean_cosine_over_frames_and_videos():
    frames = np.array([[[2, 0], [0, 3.0]], [[1, 1], [-1, 0]]])
    texts = np.array([[5.0, 0], [1, 0]])
    estimate = scores.clipsim(frames, texts)
    of_videos = np.array([0.5, (math.sqrt(0.5) - 1) / 2])
    assert estimate.value == pytest.approx(of_videos.mean(), abs=1e-12)
    assert estimate.error == pytest.approx(abs(of_videos[0] - of_videos[1]) / 2, abs=1e-12)


def test_clipsim_is_not_clamped():
    frames, texts = -np.ones((3, 2, 4)), np.ones((3, 4))
    assert scores.clipsim(frames, texts).value == pytest.approx(-1)


REFUSALS = {
    "an inception score of 10 splits has only 9 samples": lambda: scores.inception_score(
        np.ones((9, 3))
    ),
    "logits are not finite": lambda: scores.inception_score(np.full((20, 3), np.nan)),
    "CLIPSIM needs a caption for each of 2 or more videos, has 2 captions and 3 videos": lambda: (
        scores.clipsim(np.ones((3, 2, 4)), np.ones((2, 4)))
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_cannot_be_scored_is_one_line(message):
    with pytest.raises(DataError) as error:
        REFUSALS[message]()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
