"""Mixtures: exact counts in each batch, and every part in an order of its own."""

from collections import Counter

import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.data import mixture, order
from snapvideo_jax.data.choice import VideoInfo
from snapvideo_jax.data.sources import Clip, Drawn
from snapvideo_jax.errors import ConfigError
from tests import tiny

B, IMAGES = 12, 4


def part(name, images, videos):
    """A part whose captions say which sample was drawn."""

    def draw(g, is_image):
        info = VideoInfo(name, 1.0, 1.0, 2, 2)
        clip = Clip(np.zeros((1, 2, 2, 3), np.uint8), 0.0, info, 0.0)
        return Drawn(clip, f"{'image' if is_image else 'video'} {g}", name)

    return mixture.Part(draw, images, videos)


PARTS = [part("a", 1, 5), part("b", 3, 0), part("c", 0, 3)]


def batch(step):
    """(name, caption) of each row of a step."""
    samples = [order.sample_of(step, row, B, IMAGES) for row in range(B)]
    drawn = [mixture.draw(PARTS, g, is_image) for g, is_image in samples]
    return [(d.name, d.caption) for d in drawn]


@pytest.mark.parametrize("step", [0, 1, 12345678])
def test_every_batch_has_the_exact_rows_of_each_part(step):
    counts = Counter((name, caption.split()[0]) for name, caption in batch(step))
    assert counts == {
        ("a", "image"): 1, ("b", "image"): 3, ("a", "video"): 5, ("c", "video"): 3,
    }  # fmt: skip


def test_each_part_counts_its_own_samples_without_gap_or_repeat():
    rows = [row for step in range(6) for row in batch(step)]
    for name, kind, each in (("a", "image", 1), ("a", "video", 5), ("b", "image", 3)):
        captions = [c for n, c in rows if n == name and c.startswith(kind)]
        assert captions == [f"{kind} {g}" for g in range(6 * each)]


def test_parts_have_seeds_of_their_own_and_the_first_keeps_the_runs():
    seeds = [mixture.part_seed(7, number) for number in range(4)]
    assert seeds[0] == 7 and len(set(seeds)) == 4
    assert seeds == [mixture.part_seed(7, number) for number in range(4)]
    assert seeds[1:] != [mixture.part_seed(8, number) for number in range(1, 4)]


def config(*parts):
    config = tiny.get_config()
    config.training.batch_size = 8  # 2 images, 6 videos
    config.data.mixture = parts
    build.check(config)
    return config


def test_a_mixture_of_the_config_draws_from_all_and_has_a_fingerprint_of_its_own():
    alone, mixed = (build.source(config(*p), print) for p in ((), (("shapes", "", 1, 2),)))
    assert mixed.fingerprint not in (
        alone.fingerprint,
        build.source(config(("shapes", "", 1, 3)), print).fingerprint,
    )
    first, *_, last = (mixed.draw(g, False).clip.frames for g in range(6))
    np.testing.assert_array_equal(first, alone.draw(0, False).clip.frames)
    assert [mixed.draw(g, False).name for g in range(8)] == [
        f"shapes[{g}]" for g in (0, 1, 2, 3, 0, 1, 4, 5)
    ]
    assert not np.array_equal(last, alone.draw(1, False).clip.frames)
    assert mixed.captions() == alone.captions() * 2


REFUSALS = {
    "data.mixture takes 1 images more than the 2 images and 6 videos": ("shapes", "", 3, 0),
    "data.mixture takes 2 videos more than": ("shapes", "", 0, 8),
    "data.mixture=(('tar', 'x', 1, 1),) must be 0 to 64 values": ("tar", "x", 1, 1),
    "data.mixture=(('shapes', '', 1),) must be 0 to 64 values": ("shapes", "", 1),
    "data.mixture=('shapes', '', 0, 0): no row of a batch is from it": ("shapes", "", 0, 0),
    "data.mixture=(('shapes', '', 1, -1),) must be 0 to 64 values": ("shapes", "", 1, -1),
    "data.mixture=('folder', '', 1, 1): source folder needs a path": ("folder", "", 1, 1),
}


@pytest.mark.parametrize("line", REFUSALS)
def test_what_is_no_mixture_is_refused(line):
    with pytest.raises(ConfigError) as error:
        build.source(config(REFUSALS[line]), print)
    assert str(error.value).startswith(line)
