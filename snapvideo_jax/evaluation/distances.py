"""Distances between two sets of features: Frechet, its limit of infinite samples, MMD and KID.

Everything is NumPy in float64. A Frechet distance is biased upwards by O(1 / n), and the bias
depends on the sets: compare values of equal n only, or extrapolate.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation import moments
from snapvideo_jax.evaluation.moments import Moments

Features = Float[np.ndarray, "N D"]
OtherFeatures = Float[np.ndarray, "M D"]  # of a second set, which may be smaller or larger
Gram = Float[np.ndarray, "N M"]
Kernel = Callable[[Features, OtherFeatures], Gram]


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float

    def interval95(self) -> tuple[float, float]:
        """Returns the (low, high) normal 95 % interval."""
        half = 1.959964 * self.error
        return self.value - half, self.value + half


def gaussian_frechet(
    mean_a: Float[np.ndarray, " D"],
    covariance_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, " D"],
    covariance_b: Float[np.ndarray, "D D"],
) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) = the squared 2-Wasserstein distance of Gaussians.

    Dowson and Landau 1982. tr (A B)^(1/2) is the sum of the singular values of F_a^T F_b with
    A = F_a F_a^T. Singular values err by rounding alone; the square roots of the eigenvalues of A B
    err by the root of rounding wherever A or B is singular.
    """
    step = np.asarray(mean_a, np.float64) - mean_b
    roots = np.linalg.svd(_factor(covariance_a).T @ _factor(covariance_b), compute_uv=False)
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(step @ step + traces - 2 * roots.sum())


def _factor(covariance: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """Returns F with F F^T = C."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return vectors * np.sqrt(values.clip(0))


def frechet_distance(real: Moments, generated: Moments, *, singular: bool = False) -> float:
    """Returns the Frechet distance: FID, FVD, CLIP-FID, by the features that the moments are of.

    Args:
        real: moments of the reference set.
        generated: moments of the other set; the distance is symmetric.
        singular: allows sets of fewer samples than the features have numbers, as some published
            protocols do.

    Raises:
        DataError: too few samples for a covariance, or features of different sizes.
    """
    size = len(real.mean)
    if len(generated.mean) != size:
        raise DataError(f"features of {size} numbers cannot join those of {len(generated.mean)}")
    for name, part in (("real", real), ("generated", generated)):
        if part.n <= size and not singular:
            raise DataError(
                f"the {name} set has {part.n} samples, and a covariance of {size} numbers needs "
                f"{size + 1} not to be singular; take more, or allow singular ones to repeat a "
                "published protocol of so few"
            )
    of_real, of_generated = moments.covariance(real), moments.covariance(generated)
    return gaussian_frechet(real.mean, of_real, generated.mean, of_generated)


def expected_bias(size: int, n_a: float, n_b: float) -> float:
    """E[FD] = (1 / n_a + 1 / n_b) D + (1 / (n_a - 1) + 1 / (n_b - 1)) D (D + 1) / 4.

    To second order in 1 / n, of two sets of n_a and n_b samples of the same N(0, I) in `size`
    dimensions D, whose true distance is 0. The first term is the means'; the second is a quarter of
    the squared Frobenius distance of the covariances. math.inf is a set known exactly.
    """
    means, spreads = 1 / n_a + 1 / n_b, 1 / (n_a - 1) + 1 / (n_b - 1)
    return means * size + spreads * size * (size + 1) / 4


def frechet_limit(
    real: Moments, generated: Features, *, sizes: int = 15, smallest: int, seed: int
) -> Estimate:
    """Extrapolates the distance to infinite generated samples: the intercept over 1 / n.

    Chong and Forsyth 2020 (FID-infinity). The bias of the real set's own n stays in the value.

    Args:
        real: moments of the reference set.
        generated: all features; random subsets of them are measured.
        sizes: how many subset sizes, evenly from `smallest` to all.
        smallest: samples of the smallest subset; more than the features have numbers.
        seed: chooses the subsets.

    Returns:
        The intercept of the least-squares line, and its standard error from the residuals: of the
        subsets' choice, not of the samples themselves.
    """
    if not 1 < smallest < len(generated) or sizes < 3:
        raise DataError(
            f"a limit needs 3 or more sizes above smallest={smallest}, which must lie between 1 "
            f"and the {len(generated)} samples; has {sizes}"
        )
    generator = np.random.default_rng(seed)
    counts = np.linspace(smallest, len(generated), sizes).round().astype(int)
    draw = lambda count: generated[generator.permutation(len(generated))[:count]]
    values = [frechet_distance(real, moments.of(draw(count))) for count in counts]
    design = np.stack([np.ones(sizes), 1 / counts], axis=1)
    solution, residuals, *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    variance = float(residuals.sum()) / (sizes - 2)
    error = np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])
    return Estimate(float(solution[0]), float(error))


def smallest_subset(n: int, size: int) -> int:
    """Returns the `smallest` of `frechet_limit` for n samples of `size` numbers: n / 10, or more.

    Below two samples a number the distance is no line over 1 / n. Raises DataError where n is less
    than twice that, too short a line to extrapolate.
    """
    smallest = max(2 * size, n // 10)
    if n < 2 * smallest:
        raise DataError(
            f"a limit of infinite samples needs {4 * size} samples of {size} numbers, has {n}; "
            "take more, or compare Frechet distances at one n"
        )
    return smallest


def polynomial(x: Features, y: OtherFeatures, degree: int = 3, offset: float = 1.0) -> Gram:
    """k(x, y) = (x . y / D + offset)^degree: KID's with the defaults (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + offset) ** degree


def gaussian(x: Features, y: OtherFeatures, width: float = 10.0) -> Gram:
    """k(x, y) = exp(-|x - y|^2 / (2 width^2)): CMMD's width by default (Jayasumana et al. 2024)."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.exp(-squares.clip(0) / (2 * width**2))


def mmd(x: Features, y: OtherFeatures, kernel: Kernel = polynomial) -> Estimate:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), without bias (Gretton et al. 2012, eq. 3).

    Its standard error is the jackknife's: the statistic is formed again without each sample, which
    the sums of the kernel's rows give at once. Memory grows with the square of the samples.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise DataError(f"an MMD with its error needs 3 samples of each set, has {n} and {m}")
    xx, yy, xy = _off_diagonal(kernel(x, x)), _off_diagonal(kernel(y, y)), kernel(x, y)
    within_x, within_y, between = xx.sum(), yy.sum(), xy.sum()
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
    # Without sample i of one set, the other set's own term stays as it is.
    less_x = (within_x - 2 * xx.sum(1)) / ((n - 1) * (n - 2))
    less_x -= 2 * (between - xy.sum(1)) / ((n - 1) * m)
    less_y = (within_y - 2 * yy.sum(1)) / ((m - 1) * (m - 2))
    less_y -= 2 * (between - xy.sum(0)) / (n * (m - 1))
    variance = less_x.var() * (n - 1) + less_y.var() * (m - 1)
    return Estimate(float(value), float(np.sqrt(variance)))


def _off_diagonal(gram: Float[np.ndarray, "N N"]) -> Float[np.ndarray, "N N"]:
    np.fill_diagonal(gram, 0)
    return gram


class KID(NamedTuple):
    """The mean over subsets, and their standard deviation: a spread, not the mean's error."""

    mean: float
    std: float


def kid(
    real: Features, generated: OtherFeatures, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> KID:
    """Returns the kernel inception distance over random subsets of `size` from either set.

    The subsets are those of torch-fidelity with the same seed (its default is ours), drawn by
    NumPy's legacy generator, so that values agree. KID.std falls with `size`, not with the number
    of samples; for a confidence interval of the whole sets use `mmd`.
    """
    if min(len(real), len(generated)) < size or size < 3:
        raise DataError(
            f"KID takes subsets of {size} samples (3 or more), the sets have {len(real)} and "
            f"{len(generated)}; complete the sets or set a smaller size"
        )
    generator = np.random.RandomState(seed)
    draw = lambda features: features[generator.choice(len(features), size, replace=False)]
    estimate = functools.partial(mmd, kernel=polynomial)
    values = [estimate(draw(real), draw(generated)).value for _ in range(subsets)]
    return KID(float(np.mean(values)), float(np.std(values)))
