"""Metrics of sets of videos by their names: which features, of videos or frames, which distance."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import distances, moments, motion, scores
from snapvideo_jax.evaluation.features import c3d, clip, clip_tokens, i3d, inception, random_conv

Batch = UInt8[np.ndarray, "_ T H W 3"]  # the last one of a set may be smaller
Extract = Callable[[Any], Float[np.ndarray, "N D"]]


class Extractor(NamedTuple):
    """Features of a network: `extract` takes videos, or their frames if `of_frames`."""

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
# Preprocessing and epsilon of each reference's I3D.
I3D_VARIANTS = {
    "tf1": ("tf1", i3d.EPSILON),
    "cd_fvd": ("half_pixel", i3d.EPSILON_OF_PORTS),
    "videogpt": ("videogpt", i3d.EPSILON_OF_PORTS),
}
# Network -> how its references differ; the first is the default.
VARIANTS = {
    "i3d": tuple(I3D_VARIANTS),
    "inception": inception.PREPROCESSING,
    "clip": ("quick_gelu", "gelu"),
    "c3d": ("tganv2",),
    "random_conv": ("none",),
    "none": ("none",),
}
NAMES = tuple(NETWORKS)
NEED_REAL = ("fvd", "fid", "kid", "clip_fid", "random_conv")


def check_variant(metric: str, variant: str) -> str:
    """Returns the variant, the first for ""; raises ConfigError if it is not the metric's."""
    variants = VARIANTS[NETWORKS[metric]]
    if variant and variant not in variants:
        raise ConfigError(f"--variant={variant} is not one of {metric}'s: {', '.join(variants)}")
    return variant or variants[0]


def extractor(metric: str, files: Files, variant: str) -> Extractor:
    """Loads the network of a distance or of the inception score; raises as its `load` does."""
    network, digest = NETWORKS[metric], files.sha256 or None
    if network == "random_conv":
        return Extractor("", False, random_conv.features)
    path = files.path("weights", metric)
    if network == "i3d":
        way, epsilon = I3D_VARIANTS[variant]
        loaded = i3d.load(path, digest)
        return Extractor(
            loaded.sha256, False, lambda videos: i3d.features(loaded, videos, way, epsilon)
        )
    if network == "inception":
        frames = inception.load(path, digest)
        return Extractor(
            frames.sha256, True, lambda images: inception.features(frames, images, variant).pooled
        )
    if network == "clip":
        towers = clip.load(path, digest, quick_gelu=variant == "quick_gelu")
        extract = lambda images: clip.image_features(towers, images)
        return Extractor(towers.weights.sha256, True, extract)
    clips = c3d.load(path, files.path("mean", metric), digest)
    return Extractor(clips.weights.sha256, False, lambda videos: c3d.logits(clips, videos))


def features(by: Extractor, batches: Iterable[Batch]) -> Iterator[Float[np.ndarray, "_ D"]]:
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
    files: Files, variant: str, generated: Iterable[Batch], captions: Sequence[str]
) -> tuple[float, float, str]:
    """Returns CLIPSIM, its standard error over videos, and the sha256 of the weights."""
    path, digest = files.path("weights", "clipsim"), files.sha256 or None
    loaded = clip.load(path, digest, quick_gelu=variant == "quick_gelu")
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
