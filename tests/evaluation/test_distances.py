"""Distances: closed forms, known biases, scipy, and the figures of independent implementations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import distances, moments
from snapvideo_jax.evaluation.distances import Estimate
from tests.evaluation import inputs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics/distances.json").read_text())
REAL, FAKE = inputs.features(600, 40, 1), inputs.features(500, 40, 2, shift=0.1)


def rotation(size, seed):
    return np.linalg.qr(np.random.RandomState(seed).standard_normal((size, size)))[0]


def spread(size, seed):
    """A covariance of full rank."""
    x = np.random.RandomState(seed).standard_normal((size, 2 * size))
    return x @ x.T / size


@pytest.mark.parametrize("size", [1, 2, 30])
def test_two_gaussians_that_commute_have_the_closed_form(size):
    q, generator = rotation(size, 0), np.random.RandomState(1)
    a, b = generator.uniform(0.1, 4, (2, size))
    step = generator.standard_normal(size)
    expected = step @ step + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    value = distances.gaussian_frechet(step, (q * a) @ q.T, np.zeros(size), (q * b) @ q.T)
    assert abs(value - expected) < 1e-8


def test_two_by_two_gaussians_that_do_not_commute_have_the_closed_form():
    # tr (A B)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2) for 2 x 2.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    expected = 1 + 4 + np.trace(a + b) - 2 * root
    value = distances.gaussian_frechet(np.zeros(2), a, np.array([1.0, 2.0]), b)
    assert abs(value - expected) < 1e-8


def test_scipys_matrix_root_agrees():
    a, b = spread(50, 0), spread(50, 1)
    expected = np.trace(a + b) - 2 * np.real(np.trace(scipy.linalg.sqrtm(a @ b)))
    zero = np.zeros(50)
    assert abs(distances.gaussian_frechet(zero, a, zero, b) - expected) < 1e-8


def test_a_set_has_no_distance_from_itself():
    of_real = moments.of(REAL)
    assert abs(distances.frechet_distance(of_real, of_real)) < 1e-10


def test_a_singular_set_has_no_distance_from_itself():
    few = moments.of(REAL[:20])
    assert abs(distances.frechet_distance(few, few, singular=True)) < 1e-10


def test_the_distance_is_symmetric():
    a, b = moments.of(REAL), moments.of(FAKE)
    there, back = distances.frechet_distance(a, b), distances.frechet_distance(b, a)
    assert abs(there - back) < 1e-10 and there > 1


def test_frechet_agrees_with_torch_fidelity_and_cd_fvd():
    value = distances.frechet_distance(moments.of(REAL), moments.of(FAKE))
    assert abs(value - GOLDEN["fid"]) < 1e-6
    assert abs(value - GOLDEN["fvd"]) < 1e-6


def test_kid_agrees_with_torch_fidelity():
    kid = distances.kid(REAL, FAKE, subsets=20, size=200)
    np.testing.assert_allclose(kid, GOLDEN["kid"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [100, 200, 400])
def test_the_bias_of_a_standard_gaussian_is_the_expected_curve(n):
    size, runs = 10, 60
    draw = np.random.RandomState(n).standard_normal
    values = [
        distances.frechet_distance(*(moments.of(draw((n, size))) for _ in range(2)))
        for _ in range(runs)
    ]
    expected, error = distances.expected_bias(size, n, n), np.std(values) / math.sqrt(runs)
    assert abs(np.mean(values) - expected) < 4 * error + 0.6 * size * expected / n
    assert error < 0.05 * expected


def test_the_bias_against_a_known_gaussian_is_half():
    assert (
        distances.expected_bias(400, 2048, math.inf) == distances.expected_bias(400, 2048, 2048) / 2
    )


def test_the_limit_takes_the_bias_away():
    draw = np.random.RandomState(0).standard_normal
    real = moments.of(draw((40000, 12)))
    sets = [draw((2000, 12)) for _ in range(5)]
    limits = [distances.frechet_limit(real, x, smallest=200, seed=0).value for x in sets]
    biased = np.mean([distances.frechet_distance(real, moments.of(x)) for x in sets])
    assert abs(biased / distances.expected_bias(12, 40000, 2000) - 1) < 0.1
    assert abs(np.mean(limits)) < 0.2 * biased


def test_the_limit_keeps_a_true_distance():
    draw = np.random.RandomState(1).standard_normal
    real, generated = moments.of(draw((40000, 8))), draw((4000, 8)) + 0.5
    limit = distances.frechet_limit(real, generated, smallest=300, seed=0)
    assert abs(limit.value - 8 * 0.25) < 0.12


def mmd_by_hand(x, y, kernel):
    pairs = lambda a, b, same: np.mean(
        [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
    )
    return pairs(x, x, True) + pairs(y, y, True) - 2 * pairs(x, y, False)


def test_mmd_is_the_mean_over_pairs():
    x, y = REAL[:7].astype(np.float64), FAKE[:5].astype(np.float64)
    cubic = lambda p, q: (p @ q / 40 + 1) ** 3
    assert math.isclose(distances.mmd(x, y).value, mmd_by_hand(x, y, cubic), abs_tol=1e-12)
    rbf = lambda p, q: math.exp(-((p - q) ** 2).sum() / 200)
    value = distances.mmd(x, y, distances.gaussian).value
    assert math.isclose(value, mmd_by_hand(x, y, rbf), abs_tol=1e-12)


def test_mmds_error_is_the_jackknife_by_hand():
    x, y = REAL[:9], FAKE[:6]
    value = lambda a, b: distances.mmd(a, b).value
    less_x = [value(np.delete(x, i, 0), y) for i in range(9)]
    less_y = [value(x, np.delete(y, i, 0)) for i in range(6)]
    expected = math.sqrt(np.var(less_x) * 8 + np.var(less_y) * 5)
    assert math.isclose(distances.mmd(x, y).error, expected, rel_tol=1e-9)


def test_mmds_error_is_the_spread_of_repeated_draws():
    draw = np.random.RandomState(0).standard_normal
    runs = [distances.mmd(draw((80, 5)), draw((60, 5)) + 0.7) for _ in range(200)]
    values, errors = np.array(runs).T
    assert abs(np.mean(errors) / np.std(values) - 1) < 0.15


def test_an_interval_is_two_errors_wide():
    low, high = Estimate(3.0, 0.5).interval95()
    assert math.isclose(low, 2.020018) and math.isclose(high, 3.979982)


REFUSALS = {
    "the real set has 30 samples, and a covariance of 40 numbers needs 41": lambda: (
        distances.frechet_distance(moments.of(REAL[:30]), moments.of(FAKE))
    ),
    "the generated set has 40 samples": lambda: distances.frechet_distance(
        moments.of(REAL), moments.of(FAKE[:40])
    ),
    "a covariance needs at least 2 samples, has 1": lambda: distances.frechet_distance(
        moments.of(REAL[:1]), moments.of(FAKE), singular=True
    ),
    "features of 40 numbers cannot join those of 39": lambda: distances.frechet_distance(
        moments.of(REAL), moments.of(FAKE[:, 1:])
    ),
    "KID takes subsets of 1000 samples (3 or more), the sets have 600 and 500": lambda: (
        distances.kid(REAL, FAKE)
    ),
    "an MMD with its error needs 3 samples of each set, has 2 and 500": lambda: distances.mmd(
        REAL[:2], FAKE
    ),
    "a limit needs 3 or more sizes above smallest=500": lambda: distances.frechet_limit(
        moments.of(REAL), FAKE, smallest=500, seed=0
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_cannot_be_measured_is_one_line(message):
    with pytest.raises(DataError) as error:
        REFUSALS[message]()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
