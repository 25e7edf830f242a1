"""Metrics of sets of videos by their names: which features, of videos or frames, which distance."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import distances, moments, motion, scores
from snapvideo_jax.evaluation.features import c3d, clip, clip_tokens, i3d, inception, random_conv

Batch = UInt8[np.ndarray, "B T H W 3"]
Extract = Callable[[Any], Float[np.ndarray, "N D"]]


class Extractor(NamedTuple):
    """Features of a network: `extract` takes videos, or their frames if `of_frames`."""

    network: str
    preprocessing: str
    sha256: str
    of_frames: bool
    extract: Extract


class Files(NamedTuple):
    """Paths of what a metric needs; "" for none. sha256 is the expected one of the weights."""

    weights: str = ""
    sha256: str = ""
    mean: str = ""  # C3D's
    merges: str = ""  # CLIP's

    def path(self, name: str, metric: str) -> str:
        """Returns a path; raises ConfigError where it is missing."""
        path = getattr(self, name)
        if not path:
            raise ConfigError(f"--metric={metric} needs --{name}; see docs/metrics.md")
        return path


# Metric -> its network. The first way of preprocessing is the default.
NETWORKS = {
    "fvd": "i3d",
    "fid": "inception",
    "kid": "inception",
    "clip_fid": "clip",
    "clipsim": "clip",
    "is": "c3d",
    "random_conv": "random_conv",
    "motion": "none",
}
WAYS = {
    "i3d": i3d.PREPROCESSING,
    "inception": inception.PREPROCESSING,
    "clip": ("pillow_crop",),
    "c3d": ("align_corners",),
    "random_conv": ("none",),
    "none": ("none",),
}
NAMES = tuple(NETWORKS)
NEED_REAL = ("fvd", "fid", "kid", "clip_fid", "random_conv")


def check_way(metric: str, way: str) -> str:
    """Returns the way of preprocessing, the first for ""; raises ConfigError for an unknown one."""
    ways = WAYS[NETWORKS[metric]]
    if way and way not in ways:
        raise ConfigError(f"--preprocessing={way} is not one of {metric}'s: {', '.join(ways)}")
    return way or ways[0]


def extractor(metric: str, files: Files, way: str) -> Extractor:
    """Loads the network of a distance or of the inception score; raises as its `load` does."""
    network, digest = NETWORKS[metric], files.sha256 or None
    if network == "random_conv":
        return Extractor(network, way, "", False, random_conv.features)
    path = files.path("weights", metric)
    if network == "i3d":
        loaded = i3d.load(path, digest)
        extract = lambda videos: i3d.features(loaded, videos, way)
        return Extractor(network, way, loaded.sha256, False, extract)
    if network == "inception":
        frames = inception.load(path, digest)
        extract = lambda images: inception.features(frames, images, way).pooled
        return Extractor(network, way, frames.sha256, True, extract)
    if network == "clip":
        towers = clip.load(path, digest)
        extract = lambda images: clip.image_features(towers, images)
        return Extractor(network, way, towers.weights.sha256, True, extract)
    clips = c3d.load(path, files.path("mean", metric), digest)
    extract = lambda videos: c3d.logits(clips, videos)
    return Extractor(network, way, clips.weights.sha256, False, extract)


def features(by: Extractor, batches: Iterable[Batch]) -> Iterator[Float[np.ndarray, "N D"]]:
    """Yields the features of each batch; a smaller last one is filled up, so nothing recompiles."""
    full = 0
    for batch in batches:
        full = max(full, len(batch))
        filled = np.concatenate([batch, batch[-1:].repeat(full - len(batch), axis=0)])
        if by.of_frames:
            frames = filled.reshape(-1, *filled.shape[2:])
            yield by.extract(frames)[: len(batch) * batch.shape[1]]
        else:
            yield by.extract(filled)[: len(batch)]


def distance(
    metric: str,
    by: Extractor,
    real: Iterable[Batch],
    generated: Iterable[Batch],
    *,
    singular: bool = False,
) -> tuple[float, float | None]:
    """Returns a distance of NEED_REAL and its spread, None where it has none."""
    of_real, of_generated = features(by, real), features(by, generated)
    if metric == "kid":
        kid = distances.kid(_all(of_real), _all(of_generated))
        return kid.mean, kid.std
    of_real, of_generated = moments.of_batches(of_real), moments.of_batches(of_generated)
    return distances.frechet_distance(of_real, of_generated, singular=singular), None


def _all(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(parts))


def inception_score(by: Extractor, generated: Iterable[Batch]) -> tuple[float, float]:
    """Returns the score of 10 splits in the order of the set, and its standard deviation."""
    score = scores.inception_score(_all(features(by, generated)))
    return score.mean, score.std


def clipsim(
    files: Files, generated: Iterable[Batch], captions: Sequence[str]
) -> tuple[float, float, str]:
    """Returns CLIPSIM, its standard error over videos, and the sha256 of the weights."""
    loaded = clip.load(files.path("weights", "clipsim"), files.sha256 or None)
    merges = clip_tokens.read_vocabulary(files.path("merges", "clipsim"))
    rest, frames, texts = iter(captions), [], []
    for batch in generated:
        frames.append(clip.frame_features(loaded, batch))
        texts.append(clip.text_features(loaded, merges, list(itertools.islice(rest, len(batch)))))
    estimate = scores.clipsim(_all(frames), _all(texts))
    return estimate.value, estimate.error, loaded.weights.sha256


def motions(generated: Iterable[Batch]) -> dict[str, float]:
    """Returns means over videos of flicker, smoothness, speed, and the rate of dynamic ones."""
    rows = [
        (
            motion.flicker(video),
            motion.smoothness(video),
            motion.speeds(video).mean(),
            motion.is_dynamic(video),
        )
        for batch in generated
        for video in batch
    ]
    names = ("flicker", "smoothness", "speed", "dynamic_degree")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
