"""Dynamic thresholding against NumPy's quantile, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax.diffusion import guidance, threshold

RNG = np.random.default_rng(0)
WIDE = (3 * RNG.standard_normal((4, 2, 8, 6, 3))).astype(np.float32)


def numpys(a, q):
    return np.quantile(a.reshape(len(a), -1).astype(np.float64), q, axis=1)


def numbers(kind, size):
    """Two examples of `size` numbers that are not negative."""
    normal = np.abs(RNG.standard_normal((2, size)))
    return {
        "normal": normal,
        "tied": np.floor(3 * normal),
        "spread": np.exp(9 * RNG.standard_normal((2, size))),
        "zero": np.zeros((2, size)),
    }[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "tied", "spread", "zero"])
@pytest.mark.parametrize("size", [1, 2, 1000, 1001])
def test_the_quantile_is_numpys_to_a_millionth(kind, size):
    a = numbers(kind, size)
    for q in (0.0, 0.3, 0.5, 0.995, 1.0):
        np.testing.assert_allclose(threshold.quantile(jnp.asarray(a), q), numpys(a, q), rtol=1e-6)


def test_where_the_quantile_is_one_of_the_numbers_it_is_exact():
    a = numbers("spread", 1001)
    found = threshold.quantile(jnp.asarray(a), 0.995)  # position 995
    np.testing.assert_array_equal(found, np.sort(a, axis=1)[:, 995])


def test_estimates_in_range_stay_bit_for_bit():
    D = WIDE / np.abs(WIDE).max()
    np.testing.assert_array_equal(threshold.rescale(jnp.asarray(D), 0.995), D)


def test_each_video_is_clipped_at_its_percentile_and_divided_by_it():
    got = np.asarray(threshold.rescale(jnp.asarray(WIDE), 0.9))
    s = np.maximum(numpys(np.abs(WIDE), 0.9), 1).reshape(-1, 1, 1, 1, 1)
    assert (s > 3).all()
    np.testing.assert_allclose(got, np.clip(WIDE, -s, s) / s, rtol=2e-6)
    assert np.abs(got).max() == 1


def test_outliers_beyond_the_percentile_do_not_darken_a_video_that_is_in_range():
    D = (np.arange(1000, dtype=np.float32) / 1000 * 0.9)[None]
    D[0, -4:] = 50.0  # fewer than half a percent
    np.testing.assert_array_equal(threshold.rescale(jnp.asarray(D), 0.995), np.minimum(D, 1))


def test_beyond_the_range_the_scale_does_not_matter():
    got = threshold.rescale(jnp.asarray(WIDE), 0.9)
    np.testing.assert_allclose(
        threshold.rescale(jnp.asarray(7.3 * WIDE), 0.9), got, rtol=0, atol=1e-6
    )


def test_every_video_has_its_own_threshold():
    order = np.array([2, 0, 3, 1])
    D = WIDE * np.float32([0.1, 1, 3, 9]).reshape(-1, 1, 1, 1, 1)
    got = np.asarray(threshold.rescale(jnp.asarray(D), 0.9))
    np.testing.assert_array_equal(threshold.rescale(jnp.asarray(D[order]), 0.9), got[order])


def test_videos_split_by_batch_rows_and_columns_come_out_bit_for_bit_without_being_gathered():
    mesh = jax.make_mesh((2, 2, 2), ("data", "rows", "columns"))
    split = NamedSharding(mesh, PartitionSpec("data", None, "rows", "columns"))
    run = lambda D: threshold.rescale(jnp.asarray(D), 0.97)
    compiled = jax.jit(run, in_shardings=split, out_shardings=split).lower(WIDE).compile()
    got = compiled(jax.device_put(WIDE, split))
    np.testing.assert_array_equal(got, jax.jit(run)(WIDE))
    program = compiled.as_text()
    assert "all-reduce" in program and "all-gather" not in program
    s = np.maximum(numpys(np.abs(WIDE), 0.97), 1).reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(got, np.clip(WIDE, -s, s) / s, rtol=2e-6)


def test_it_is_the_guided_estimate_that_is_thresholded():
    def denoise(x, sigma, text, carry):
        return jnp.full_like(x, 0.5) * text, carry

    text = jnp.ones((2, 1))
    guided = guidance.classifier_free(denoise, text, 0 * text, threshold.rescaler(0.0))
    x = jnp.zeros((2, 10))
    assert guided(x, jnp.float32(1), jnp.float32(5), ())[0][0, 0] == 3
    D, _ = guided(x, jnp.float32(1), jnp.float32(5), ())
    np.testing.assert_array_equal(threshold.rescale(D, 0.995), jnp.ones_like(x))
