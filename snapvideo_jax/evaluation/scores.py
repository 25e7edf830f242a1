"""Scores of one set: the inception score of class logits, and CLIPSIM of paired embeddings."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation.distances import Estimate

SPLITS = 10  # of an inception score, in all of print


class InceptionScore(NamedTuple):
    """The mean over splits, and their standard deviation, as papers print it."""

    mean: float
    std: float


def inception_score(
    logits: Float[np.ndarray, "N K"], splits: int = SPLITS, seed: int | None = None
) -> InceptionScore:
    """IS = exp E_x KL(p(y | x) || p(y)) in each split (Salimans et al. 2016).

    Args:
        logits: before the softmax. C3D of UCF-101: all 101; Inception of FID: those without bias.
        splits: equal parts; a part's p(y) is its own, so a score depends on N / splits.
        seed: shuffles first, with NumPy's legacy generator (torch-fidelity: 2020); None: as they
            come, which lowers the score where samples are sorted by class.

    Raises:
        DataError: fewer samples than splits, or logits that are not finite.
    """
    if len(logits) < splits:
        raise DataError(f"an inception score of {splits} splits has only {len(logits)} samples")
    if not np.isfinite(logits).all():
        raise DataError("logits are not finite; check the videos and the weights")
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    bounds = np.arange(splits + 1) * len(log_p) // splits
    scores = [_score(log_p[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: Float[np.ndarray, "n K"]) -> float:
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    # A class whose mean underflows to 0 has p = 0 everywhere: it adds nothing.
    log_mean = np.log(np.where(mean > 0, mean, 1))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))


def clipsim(frames: Float[np.ndarray, "N T D"], texts: Float[np.ndarray, "M D"]) -> Estimate:
    """CLIPSIM = the mean over videos and frames of cos(frame, caption) (Wu et al. 2021, GODIVA).

    No factor of 2.5 and no clamp at 0: that is CLIPScore. The error is over videos, whose frames
    are not independent.
    """
    if len(frames) != len(texts) or len(texts) < 2:
        raise DataError(
            f"CLIPSIM needs a caption for each of 2 or more videos, has {len(texts)} captions and "
            f"{len(frames)} videos"
        )
    cosines = np.einsum("ntd,nd->nt", _unit(frames), _unit(texts)).mean(axis=1)
    return Estimate(float(cosines.mean()), float(cosines.std(ddof=1) / np.sqrt(len(cosines))))


def _unit(x: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
