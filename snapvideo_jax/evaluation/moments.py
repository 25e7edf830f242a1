"""Mean and covariance of features in float64, from batches in any order and on any machine.

Each process adds its batches to its own moments; the moments of all are merged at the end, by
`merge` in memory or through files. Deviations are taken from the mean of each batch first, so no
digits are lost where the mean is large beside the spread.
"""

import functools
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from snapvideo_jax import storage
from snapvideo_jax.errors import DataError, reason


class Moments(NamedTuple):
    """What a Frechet distance needs of a set of features."""

    n: int
    mean: Float[np.ndarray, " D"]
    scatter: Float[np.ndarray, "D D"]  # sum of (x - mean) (x - mean)^T


def of(features: Float[np.ndarray, "..."]) -> Moments:
    """Returns the moments of one batch [N, D]; raises DataError for another shape, inf or nan."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not len(x):
        raise DataError(f"features have the shape {x.shape}, expected [samples, numbers]")
    broken = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(broken):
        raise DataError(f"features of sample {broken[0]} are not finite; check it and the weights")
    mean = x.mean(axis=0)
    deviation = x - mean
    return Moments(n=len(x), mean=mean, scatter=deviation.T @ deviation)


def merge(a: Moments, b: Moments) -> Moments:
    """S = S_a + S_b + n_a n_b / n (m_b - m_a) (m_b - m_a)^T (Chan, Golub and LeVeque 1979)."""
    if a.mean.shape != b.mean.shape:
        raise DataError(f"features of {len(a.mean)} numbers cannot join those of {len(b.mean)}")
    n = a.n + b.n
    step = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(step, step) * (a.n * b.n / n)
    return Moments(n=n, mean=a.mean + step * (b.n / n), scatter=scatter)


def of_batches(batches: Iterable[Float[np.ndarray, "_ D"]], expected: int | None = None) -> Moments:
    """Returns the moments of all batches, holding one batch at a time.

    Raises DataError where there is no batch, or not exactly `expected` samples in all.
    """
    parts = (of(batch) for batch in batches)
    first = next(parts, None)
    if first is None:
        raise DataError("a set without samples has no moments")
    moments = functools.reduce(merge, parts, first)
    if expected is not None and moments.n != expected:
        raise DataError(
            f"the set has {moments.n} samples, expected {expected}; a distance depends on the "
            "number of samples, so complete the set or compare at the smaller number"
        )
    return moments


def covariance(moments: Moments) -> Float[np.ndarray, "D D"]:
    """C = S / (n - 1); raises DataError for fewer than two samples."""
    if moments.n < 2:
        raise DataError(f"a covariance needs at least 2 samples, has {moments.n}")
    return moments.scatter / (moments.n - 1)


def save(path: str | Path, moments: Moments) -> None:
    """Writes moments as npz; raises StorageError where the file cannot be written."""
    content = io.BytesIO()
    np.savez(content, n=np.int64(moments.n), mean=moments.mean, scatter=moments.scatter)
    storage.write(path, content.getvalue())


def load(path: str | Path) -> Moments:
    """Reads what `save` wrote; raises DataError, one line, where the file is something else."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            n, mean, scatter = (arrays[name] for name in Moments._fields)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        detail = reason(error)[:200]
        raise DataError(f"{path} cannot be read as moments ({detail}); make it again") from error
    if n.shape != () or mean.ndim != 1 or scatter.shape != mean.shape * 2 or n < 1:
        shapes = f"n {n.shape}, mean {mean.shape}, scatter {scatter.shape}"
        raise DataError(f"{path} cannot be used as moments: {shapes}; make it again")
    return Moments(int(n), mean=mean.astype(np.float64), scatter=scatter.astype(np.float64))
