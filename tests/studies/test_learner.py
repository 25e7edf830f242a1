"""What a studied network sees: training's own examples, and compositions never shown."""

import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.data import shapes
from snapvideo_jax.studies import learner
from tests import tiny


def encode(captions):
    ids = np.array([[len(caption), sum(map(ord, caption))] for caption in captions], np.int32)
    return {"text_ids": ids, "text_mask": ids > 0}


CONFIG = tiny.get_config()
TEXT = build.Text(encode, 64, "")


def test_examples_are_those_that_training_sees_at_its_positions():
    first, _, third = learner.training_batches(build.with_batch_size(CONFIG, 8), TEXT, 3)
    example = build.source(CONFIG, print).example
    images = 8 // 4
    videos = [example(g, True)[0] for g in range(2 * images, 3 * images)]
    videos += [example(g, False)[0] for g in range(12, 18)]
    assert np.array_equal(third["video"], np.stack(videos))
    assert list(first["frame_interval"][:3]) == [0, 0, pytest.approx(0.25, abs=0.13)]


def test_what_scores_has_only_captions_that_training_never_shows():
    seen, world = [], build.world(CONFIG)
    text = TEXT._replace(encode=lambda captions: seen.extend(captions) or encode(captions))
    batch = learner.held_out(CONFIG, text, 40)
    held_out = {shapes.caption(c) for c in shapes.compositions(world, held_out=True)}
    assert len(seen) == 40 and set(seen) <= held_out
    assert not set(seen) & set(shapes.all_captions(world))
    assert min(batch["frame_interval"]) > 0 and batch["video"].shape[0] == 40
