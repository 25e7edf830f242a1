"""The order of data: permutations, epochs, counter-based streams."""

import numpy as np
import pytest

from snapvideo_jax.data import order
from snapvideo_jax.errors import ConfigError


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17, 1000, 46_205])
def test_permute_is_a_bijection(n):
    images = order.permute(np.arange(n), n, key=5)
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(n))


def test_permute_is_injective_on_a_slice_of_a_huge_set():
    n = 10**12 + 39
    images = order.permute(np.arange(4096) + n - 4096, n, key=-3)
    assert len(np.unique(images)) == 4096 and images.min() >= 0 and images.max() < n
    # 4096 uniform draws reach the lowest and the highest hundredth with certainty.
    assert images.min() < n / 100 and images.max() > n * 0.99


def test_another_key_is_another_permutation():
    n = 1000
    a, b = (order.permute(np.arange(n), n, key=k) for k in (0, 1))
    assert (a == b).mean() < 0.01  # two random permutations share 1 of n places on average
    assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.1


def test_every_key_sends_a_position_everywhere():
    counts = np.bincount(
        [order.permute(np.array([3]), 8, key=k)[0] for k in range(800)], minlength=8
    )
    assert counts.min() > 60 and counts.max() < 140  # 100 +- 4 standard deviations


def test_positions_outside_the_set_are_refused():
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        order.permute(np.array([3, 10]), 10, key=0)


def test_an_epoch_shows_each_example_once_and_the_next_in_another_order():
    n = 50
    shown = order.index(np.arange(3 * n), n, seed=7).reshape(3, n)
    np.testing.assert_array_equal(np.sort(shown, axis=1), np.tile(np.arange(n), (3, 1)))
    assert (shown[0] == shown[1]).mean() < 0.2 and (shown[1] == shown[2]).mean() < 0.2


def test_index_does_not_depend_on_how_the_numbers_are_split():
    g = np.arange(37, 337)  # crosses epochs
    whole = order.index(g, 50, seed=7)
    parts = np.concatenate([order.index(part, 50, seed=7) for part in np.array_split(g, 7)])
    np.testing.assert_array_equal(whole, parts)


def test_index_far_into_training_equals_its_golden_values():
    # Pinned: a change of these numbers breaks the resume of every run that exists.
    g = np.array([0, 1, 2, 10**9, 10**15])
    np.testing.assert_array_equal(order.index(g, 1000, seed=0), [495, 961, 616, 290, 986])


@pytest.mark.parametrize("n", [1, 5, 1000, 2**40 + 1])
@pytest.mark.parametrize("seed", [0, -3, 2**64 - 1])
def test_the_index_of_one_sample_is_that_of_an_array(n, seed):
    g = np.concatenate([np.arange(40), 10**15 + np.arange(10)])
    assert [order.index_of(sample, n, seed) for sample in g.tolist()] == [*order.index(g, n, seed)]


def test_generators_repeat_and_differ_by_seed_sample_and_stream():
    draw = lambda *key: order.generator(*key).random(4).tolist()
    assert draw(1, 2, "clip") == draw(1, 2, "clip")
    others = [draw(1, 2, "clip"), draw(2, 2, "clip"), draw(1, 3, "clip"), draw(1, 2, "caption")]
    assert len({tuple(values) for values in others}) == 4
    assert draw(-1, 2**63, "clip") == draw(-1, 2**63, "clip")


def test_generators_of_consecutive_samples_are_uncorrelated():
    a = np.array([order.generator(0, g, "clip").random() for g in range(2000)])
    assert abs(a.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.08


@pytest.mark.parametrize("fraction, rows", [(0.0, 0), (0.5, 8), (1.0, 16), (0.3125, 5)])
def test_image_rows_counts_whole_rows(fraction, rows):
    assert order.image_rows(16, fraction) == rows


@pytest.mark.parametrize(
    "fraction, message",
    [(-0.1, "outside"), (1.5, "outside"), (float("nan"), "outside"), (0.3, r"0\.3125 \(5 rows\)")],
)
def test_image_rows_refuses_what_is_no_whole_number_of_rows(fraction, message):
    with pytest.raises(ConfigError, match=message):
        order.image_rows(16, fraction)
