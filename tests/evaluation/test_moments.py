"""Streaming moments: any split into batches and shards is the whole, and damage is one line."""

import functools

import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import moments
from tests.evaluation import inputs


def same(a, b, tolerance):
    scale = np.abs(b.scatter).max() / b.n
    assert a.n == b.n
    assert np.abs(a.mean - b.mean).max() <= tolerance * max(1, np.abs(b.mean).max())
    assert np.abs(a.scatter - b.scatter).max() / b.n <= tolerance * scale


def test_moments_are_numpys():
    x = inputs.features(300, 12, 0)
    of_x = moments.of(x)
    np.testing.assert_allclose(of_x.mean, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance(of_x), np.cov(x.T.astype(np.float64)), atol=1e-14)


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_sharded_is_unsharded_to_1e_12(shards):
    x = inputs.features(503, 24, 1, shift=3.0)
    parts = [moments.of_batches(np.array_split(s, 5)) for s in np.array_split(x, shards)]
    same(functools.reduce(moments.merge, parts), moments.of(x), 1e-12)
    same(functools.reduce(moments.merge, parts[::-1]), moments.of(x), 1e-12)


def test_a_mean_large_beside_the_spread_costs_no_digits():
    # E[x x^T] - m m^T would leave none of the covariance's digits here.
    x = np.random.RandomState(0).standard_normal((400, 3))
    far = moments.of_batches(np.array_split(x + 1e8, 8))
    np.testing.assert_allclose(moments.covariance(far), np.cov(x.T), atol=1e-7)


def test_batches_of_one_sample_count():
    x = inputs.features(9, 4, 2)
    same(moments.of_batches(x[i : i + 1] for i in range(9)), moments.of(x), 1e-12)


def test_moments_come_back_from_their_file(tmp_path):
    before = moments.of(inputs.features(50, 6, 3))
    moments.save(tmp_path / "real.npz", before)
    after = moments.load(tmp_path / "real.npz")
    assert after.n == before.n
    np.testing.assert_array_equal(after.scatter, before.scatter)


def refusal(call):
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_truncated_set_is_refused_with_its_count():
    batches = np.array_split(inputs.features(30, 4, 0), 3)
    message = refusal(lambda: moments.of_batches(batches, expected=32))
    assert message.startswith("the set has 30 samples, expected 32; a distance depends on")
    assert refusal(lambda: moments.of_batches([])) == "a set without samples has no moments"


def test_too_few_samples_for_a_covariance():
    one = moments.of(np.ones((1, 3)))
    assert (
        refusal(lambda: moments.covariance(one)) == "a covariance needs at least 2 samples, has 1"
    )


def test_features_that_are_not_finite_name_the_sample():
    x = np.ones((4, 3))
    x[2, 1] = np.nan
    assert refusal(lambda: moments.of(x)).startswith("features of sample 2 are not finite")


def test_features_of_two_sizes_do_not_merge():
    a, b = moments.of(np.ones((4, 3))), moments.of(np.ones((4, 2)))
    assert refusal(lambda: moments.merge(a, b)) == "features of 3 numbers cannot join those of 2"
    assert "shape (4,)" in refusal(lambda: moments.of(np.ones(4)))


@pytest.mark.parametrize("damage", ["missing", "short", "text", "fields", "shapes", "objects"])
def test_a_damaged_file_of_moments_is_one_line(tmp_path, damage):
    path = tmp_path / "real.npz"
    moments.save(path, moments.of(inputs.features(50, 6, 3)))
    if damage == "missing":
        path.unlink()
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-300])
    if damage == "text":
        path.write_text("no moments")
    if damage == "fields":
        np.savez(path, n=3, mean=np.ones(2))
    if damage == "shapes":
        np.savez(path, n=3, mean=np.ones(2), scatter=np.ones((3, 3)))
    if damage == "objects":
        np.savez(path, n=3, mean=np.ones(2), scatter=np.array([print], object))
    assert str(path) in refusal(lambda: moments.load(path))
