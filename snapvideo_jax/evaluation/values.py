"""From features and scores to the values of a result, each with its error if it has one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from snapvideo_jax.evaluation import distances, metrics, moments, oracle, scores
from snapvideo_jax.evaluation.extractors import FRECHET
from snapvideo_jax.evaluation.job import Measured
from snapvideo_jax.evaluation.metrics import Extractor
from snapvideo_jax.evaluation.moments import Moments
from snapvideo_jax.evaluation.result import Result, Value

CHUNK = 4096  # features whose moments are taken at a time


def of(
    measured: Measured, real: Mapping[str, Moments], networks: Mapping[str, Extractor]
) -> dict[str, Value]:
    """Returns distances, scores and measures of motion, each with its error if it has one."""
    values: dict[str, Value] = {}
    for name in networks:
        if name in FRECHET:
            features = _rows(measured[name])
            value = distances.frechet_distance(real[name], moments_of(measured[name]))
            values[FRECHET[name]] = Value(value)
            if len(features) >= 4 * networks[name].size:
                smallest = distances.smallest_subset(*features.shape)
                limit = distances.frechet_limit(real[name], features, smallest=smallest, seed=0)
                values[f"{FRECHET[name]} limit"] = Value(*limit)
    if "clip_text" in measured:
        values["clipsim"] = Value(*scores.clipsim(measured["clip"], measured["clip_text"]))
    if "c3d" in measured:
        values["is"] = Value(*scores.inception_score(_rows(measured["c3d"])))
    moving = [name for name in metrics.MOTIONS if np.isfinite(measured[name]).any()]
    return values | {name: mean(measured[name]) for name in moving}


def mean(column: Float[np.ndarray, " N"]) -> Value:
    """Returns the mean and its standard error, over the videos that were measured."""
    column = column[np.isfinite(column)].astype(np.float64)
    error = float(column.std(ddof=1) / np.sqrt(len(column))) if len(column) > 1 else None
    return Value(float(column.mean()), error)


def rates(scored: dict[str, Any]) -> dict[str, Value]:
    """Returns the oracle's rates as values, with their standard errors."""
    n, values = scored["n"], {}
    for kind, rates in (("seen", scored), ("held out", scored["held_out"])):
        for name in ("present", *oracle.FACTORS, "all"):
            if (rate := rates[name]) is not None:
                values[f"{kind}: {name}"] = Value(rate, float(np.sqrt(rate * (1 - rate) / n)))
    return values


def chance(result: Result) -> dict[str, dict[str, Value]]:
    """Returns {"chance": values} of a model that ignores its prompts; {} where none are scored."""
    rates = {
        f"seen: {name}": Value(rate) for name, rate in result.details.get("chance", {}).items()
    }
    known = {name: value for name, value in rates.items() if name in result.values}
    return {"chance": known} if known else {}


def moments_of(features: Float[np.ndarray, "N F D"]) -> Moments:
    """Returns the moments of a network's features."""
    x = _rows(features)
    return moments.of_batches(x[i : i + CHUNK] for i in range(0, len(x), CHUNK))


def _rows(features: Float[np.ndarray, "N F D"]) -> Float[np.ndarray, "M D"]:
    return features.reshape(-1, features.shape[-1])
