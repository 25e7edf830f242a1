"""Metrics of sets of videos by their names: which features, of videos or frames, which distance."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import distances, moments, motion, scores
from snapvideo_jax.evaluation.distances import Estimate
from snapvideo_jax.evaluation.features import c3d, clip, clip_tokens, i3d, inception, random_conv

Batch = UInt8[np.ndarray, "_ T H W 3"]  # the last one of a set may be smaller
Features = Float[np.ndarray, "N D"]


class Extractor(NamedTuple):
    """Features of a network: `extract` takes videos, or their frames if `of_frames`.

    sha256: of the weights, "" without. variant: whose preprocessing, a name of VARIANTS. size: how
    many numbers a feature has. frames: how many a video must have at least. texts: captions -> the
    features to compare with; CLIP's alone, and only with its vocabulary. more_sha256: of the files
    beside the weights, C3D's mean or CLIP's vocabulary.
    """

    sha256: str
    variant: str
    of_frames: bool
    size: int
    extract: Callable[[Any], Features]
    frames: int = 1
    texts: Callable[[Sequence[str]], Features] | None = None
    more_sha256: str = ""


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
# Network -> the files that it is loaded from; CLIP also needs merges where it reads captions.
FILES = {
    "i3d": ("weights",),
    "inception": ("weights",),
    "clip": ("weights",),
    "c3d": ("weights", "mean"),
    "random_conv": (),
    "none": (),
}
NAMES = tuple(NETWORKS)
NEED_REAL = ("fvd", "fid", "kid", "clip_fid", "random_conv")


def check_variant(metric: str, variant: str) -> str:
    """Returns the variant, the first for ""; raises ConfigError if it is not the metric's."""
    variants = VARIANTS[NETWORKS[metric]]
    if variant and variant not in variants:
        raise ConfigError(f"--variant={variant} is not one of {metric}'s: {', '.join(variants)}")
    return variant or variants[0]


def load(
    network: str,
    variant: str,
    *,
    weights: str = "",
    sha256: str | None = None,
    mean: str = "",
    merges: str = "",
) -> Extractor:
    """Loads a network of NETWORKS; raises DataError, one line, where a file is not the right one.

    Args:
        network: its name.
        variant: whose preprocessing, one of VARIANTS[network].
        weights: path of its file; not for random_conv.
        sha256: which the weights must have; None: any.
        mean: path of C3D's mean clip.
        merges: path of CLIP's vocabulary; "" where no captions are compared.
    """
    if network == "random_conv":
        return Extractor("", variant, False, random_conv.FEATURES, random_conv.features)
    if network == "i3d":
        way, epsilon = I3D_VARIANTS[variant]
        loaded = i3d.load(weights, sha256)
        extract = lambda videos: i3d.features(loaded, videos, way, epsilon)
        return Extractor(loaded.sha256, variant, False, i3d.CLASSES, extract, i3d.MIN_FRAMES)
    if network == "inception":
        frames = inception.load(weights, sha256)
        extract = lambda images: inception.features(frames, images, variant).pooled
        return Extractor(frames.sha256, variant, True, inception.FEATURES, extract)
    if network == "clip":
        towers = clip.load(weights, sha256, quick_gelu=variant == "quick_gelu")
        extract = functools.partial(clip.image_features, towers)
        size = towers.module.sizes.embedding
        images = Extractor(towers.weights.sha256, variant, True, size, extract)
        if not merges:
            return images
        texts = functools.partial(clip.text_features, towers, clip_tokens.read_vocabulary(merges))
        digest = hashlib.sha256(Path(merges).read_bytes()).hexdigest()
        return images._replace(texts=texts, more_sha256=digest)
    clips = c3d.load(weights, mean, sha256)
    extract = functools.partial(c3d.logits, clips)
    videos = Extractor(clips.weights.sha256, variant, False, c3d.CLASSES, extract, c3d.FRAMES)
    return videos._replace(more_sha256=clips.mean_sha256)


def features(by: Extractor, batches: Iterable[Batch]) -> Iterator[Features]:
    """Yields the features of each batch; a smaller last one is filled up, so nothing recompiles."""
    full = 0
    for batch in batches:
        full = max(full, len(batch))
        values = by_video(by, batch, full)
        yield values.reshape(-1, values.shape[-1])


def by_video(by: Extractor, videos: Batch, full: int) -> Float[np.ndarray, "_ N D"]:
    """Returns the features of each video: one, or one a frame.

    full: videos that the network computes at a time; fewer are filled up to as many.
    """
    filled = np.concatenate([videos, videos[-1:].repeat(full - len(videos), axis=0)])
    flat = filled.reshape(-1, *filled.shape[2:]) if by.of_frames else filled
    values = by.extract(flat)
    return values.reshape(full, -1, values.shape[-1])[: len(videos)]


# Distances of two sets of features, beside KID.
DISTANCES = ("frechet", "limit", "mmd", "gaussian_mmd")


def distance(
    name: str,
    real: Iterable[Features],
    generated: Iterable[Features],
    *,
    singular: bool = False,
) -> tuple[float, float | None]:
    """Returns a distance of DISTANCES or "kid", and its error or spread, None where it has none.

    name: "frechet" holds one batch at a time. "limit": its extrapolation to infinite generated
    samples. "mmd": squared, without bias, by KID's kernel; "gaussian_mmd": by CMMD's. "kid": the
    mean of mmd over subsets. singular: as for `distances.frechet_distance`.
    """
    if name == "frechet":
        of_real, of_generated = moments.of_batches(real), moments.of_batches(generated)
        return distances.frechet_distance(of_real, of_generated, singular=singular), None
    if name == "limit":
        all_generated = join(generated)
        smallest = distances.smallest_subset(*all_generated.shape)
        of_real = moments.of_batches(real)
        return distances.frechet_limit(of_real, all_generated, smallest=smallest, seed=0)
    of_real, of_generated = join(real), join(generated)
    if name == "kid":
        return distances.kid(of_real, of_generated)
    kernel = distances.polynomial if name == "mmd" else distances.gaussian
    return distances.mmd(of_real, of_generated, kernel)


def join(parts: Iterable[Float[np.ndarray, "_ ..."]]) -> Float[np.ndarray, "N ..."]:
    """Returns the rows of all batches."""
    return np.concatenate(list(parts))


def clipsim(by: Extractor, generated: Iterable[Batch], captions: Sequence[str]) -> Estimate:
    """Returns CLIPSIM and its standard error over videos; `by` is CLIP with its vocabulary."""
    assert by.texts is not None, "CLIP was loaded without its vocabulary"
    rest, frames, texts = iter(captions), [], []
    for batch in generated:
        frames.append(by_video(by, batch, len(batch)))
        texts.append(by.texts(list(itertools.islice(rest, len(batch)))))
    return scores.clipsim(join(frames), join(texts))


MOTIONS = ("flicker", "smoothness", "speed", "dynamic_degree")


def motions(videos: Batch) -> dict[str, Float[np.ndarray, " _"]]:
    """Returns flicker, smoothness, speed, and whether it is dynamic, of each video.

    Smoothness needs 3 frames, and is left out where there are 2.
    """
    rows = [_motions(video) for video in videos]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def _motions(video: UInt8[np.ndarray, "T H W 3"]) -> dict[str, float]:
    speeds, values = motion.speeds(video), {"flicker": motion.flicker(video)}
    if len(video) > 2:
        values["smoothness"] = motion.smoothness(video)
    dynamic = motion.is_dynamic(speeds, min(video.shape[1:3]))
    return values | {"speed": float(speeds.mean()), "dynamic_degree": float(dynamic)}
