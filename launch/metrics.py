"""Measures a folder of videos, alone or against real ones, and writes the value with its protocol.

  python -m launch.metrics --metric=fvd --real=REAL --generated=SAMPLES --num_videos=2048 \\
      --weights=i3d_pretrained_400.pt --frame_rate=25 --reference="UCF-101 train" --out=fvd.json

--metric       needs
  fvd          --real, --weights of I3D
  fid, kid     --real, --weights of Inception-v3 (all frames)
  clip_fid     --real, --weights of CLIP (all frames)
  clipsim      --weights of CLIP, --merges, --captions
  is           --weights of C3D, --mean
  random_conv  --real; a Frechet distance of random features, which is no FVD
  motion       nothing: flicker, smoothness, speed, dynamic degree

--distance says how the features of two sets are compared: frechet (FVD, FID); limit, which
extrapolates it to infinitely many generated videos; mmd, the squared maximum mean discrepancy by
KID's kernel, without bias and with its error; gaussian_mmd, by CMMD's kernel.

The first --num_videos of a folder by name are taken, and the first --frames of each; fewer are an
error. Two values are comparable where their protocol_digest is the same: --compare=OTHER.json
prints the difference, or which fields differ. docs/metrics.md says which files, from where.
Exit codes: 0 done, 2 bad flags or unlike protocols, 3 bad videos or weights, 5 --out not written.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, DataError
from snapvideo_jax.evaluation import measurement, metrics, scores, video_set
from snapvideo_jax.evaluation.measurement import Measurement, Protocol
from snapvideo_jax.kinds import Real, Whole

METRIC = flags.DEFINE_enum("metric", None, metrics.NAMES, "What is measured.", required=True)
GENERATED = flags.DEFINE_string("generated", None, "Folder of videos.", required=True)
OUT = entry.define_file("out", "JSON file to write.", required=True)
REAL = flags.DEFINE_string("real", "", "Folder of real videos, for distances.")
WEIGHTS = flags.DEFINE_string("weights", "", "File of the network's weights.")
SHA256 = flags.DEFINE_string("sha256", "", "Of --weights: its first 8 or more digits; checked.")
MEAN = flags.DEFINE_string("mean", "", "mean2.npz of C3D.")
MERGES = flags.DEFINE_string("merges", "", "CLIP's bpe_simple_vocab_16e6.txt.gz or merges.txt.")
CAPTIONS = flags.DEFINE_string("captions", "", "Text file: a line for each video, by its name.")
DISTANCE = flags.DEFINE_enum("distance", "frechet", metrics.DISTANCES, "Of features; not of kid.")
VARIANT = flags.DEFINE_string("variant", "", "Whose resizing and constants; see docs/metrics.md.")
NUM = number_flags.define(
    "num_videos", None, Whole(2, 10_000_000), "Videos of each folder; default: all."
)
FRAMES = number_flags.define("frames", 16, Whole(2, 4096), "Frames of each video.")
RATE = number_flags.define(
    "frame_rate", 0.0, Real(0.0, 1000.0), "Frames per second of both sets, for the record."
)
REFERENCE = flags.DEFINE_string("reference", "", "Data set and split of --real, for the record.")
COMPRESSION = flags.DEFINE_string("compression", "", "Of both sets, for the record.")
MODEL = flags.DEFINE_string("model", "", "What made the videos, for the record.")
BATCH = number_flags.define("batch_size", 16, Whole(1, 65_536), "Videos at a time.")
SINGULAR = flags.DEFINE_bool("singular", False, "Allow fewer samples than features, as some do.")
COMPARE = flags.DEFINE_string("compare", "", "JSON file of another value of the same protocol.")


def run() -> None:
    """Measures, writes, and compares."""
    metric, variant = METRIC.value, metrics.check_variant(METRIC.value, VARIANT.value)
    other = measurement.read(COMPARE.value) if COMPARE.value else None
    if (metric in metrics.NEED_REAL) != bool(REAL.value):
        verb = "needs" if metric in metrics.NEED_REAL else "takes no"
        raise ConfigError(f"--metric={metric} {verb} --real")
    if metric not in metrics.NEED_REAL or metric == "kid":
        entry.refuse_unread("a metric of two sets other than kid", DISTANCE)
    check_files(metric)
    generated = video_set.paths(GENERATED.value, NUM.value)
    real = video_set.paths(REAL.value, NUM.value or len(generated)) if REAL.value else []
    if metric == "motion":
        write_motion(generated)
        return
    by = metrics.load(
        metrics.NETWORKS[metric],
        variant,
        weights=WEIGHTS.value,
        sha256=SHA256.value or None,
        mean=MEAN.value,
        merges=MERGES.value,
    )
    value, error = measure(metric, by, real, generated)
    result = Measurement(
        value, error, protocol(variant, by.sha256, len(real), generated), {"model": MODEL.value}
    )
    measurement.write(OUT.value, result)
    screen.say(f"{metric} {value:.6g}" + ("" if error is None else f" +- {error:.2g}"))
    if other is not None:
        screen.say(f"{measurement.difference(result, other):+.6g} against {COMPARE.value}")


def check_files(metric: str) -> None:
    """Raises ConfigError where a file that the metric needs has no flag."""
    for flag in metrics.FILES[metrics.NETWORKS[metric]]:
        if not flags.FLAGS[flag].value:
            raise ConfigError(f"--metric={metric} needs --{flag}; see docs/metrics.md")
    if metric == "clipsim" and not (MERGES.value and CAPTIONS.value):
        lacking = "captions" if MERGES.value else "merges"
        raise ConfigError(f"--metric=clipsim needs --{lacking}; see docs/metrics.md")


def measure(
    metric: str, by: metrics.Extractor, real: list[Path], generated: list[Path]
) -> tuple[float, float | None]:
    """Returns the value of a metric, and its error or spread where it has one."""
    if metric == "clipsim":
        return metrics.clipsim(by, batches(generated), captions(len(generated)))
    of_generated = metrics.features(by, batches(generated))
    if metric == "is":
        return scores.inception_score(metrics.join(of_generated))
    of_real = metrics.features(by, batches(real))
    return metrics.distance(distance(metric), of_real, of_generated, singular=SINGULAR.value)


def distance(metric: str) -> str:
    """Returns the name of the distance; "" for a score of one set."""
    if metric == "kid":
        return "kid"
    return DISTANCE.value if metric in metrics.NEED_REAL else ""


def batches(videos: list[Path]) -> video_set.Batches:
    """Reads a set; the screen shows how far it is."""
    progress, done = screen.progress("videos"), 0
    for batch in video_set.batches(videos, frames=FRAMES.value, batch_size=BATCH.value):
        yield batch
        done += len(batch)
        progress(done, len(videos))


def captions(count: int) -> list[str]:
    """Reads --captions; raises DataError where there is not one for each video."""
    try:
        lines = Path(CAPTIONS.value).read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{CAPTIONS.value}: cannot be read: {error}") from error
    if len(lines) != count:
        raise DataError(f"{CAPTIONS.value}: has {len(lines)} lines, the set {count} videos")
    return lines


def protocol(variant: str, sha256: str, n_real: int, generated: list[Path]) -> Protocol:
    """Returns the record of what decides the value."""
    first = next(video_set.batches(generated[:1], frames=FRAMES.value, batch_size=1))
    return Protocol(
        metric=METRIC.value,
        distance=distance(METRIC.value),
        features=metrics.NETWORKS[METRIC.value],
        weights_sha256=sha256,
        variant=variant,
        n_real=n_real,
        n_generated=len(generated),
        reference=REFERENCE.value,
        frames=FRAMES.value,
        frame_rate=RATE.value,
        height=first.shape[2],
        width=first.shape[3],
        compression=COMPRESSION.value,
    )


def write_motion(generated: list[Path]) -> None:
    """Writes the measures of motion, which have no protocol but the videos."""
    rows = [metrics.motions(batch) for batch in batches(generated)]
    values = {name: float(np.concatenate([r[name] for r in rows]).mean()) for name in rows[0]}
    storage.write(OUT.value, json.dumps(values, indent=2).encode() + b"\n")
    screen.say(", ".join(f"{name} {value:.4g}" for name, value in values.items()))


if __name__ == "__main__":
    entry.run(run)
