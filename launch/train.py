"""Trains a model, or goes on with the run that is in --workdir.

  python -m launch.train --config=configs/shapes.py --workdir=runs/shapes

On a folder of videos, each with its caption beside it (clip.mp4, clip.txt):

  python -m launch.train --config=configs/shapes.py --workdir=runs/mine \\
      --config.data.source=folder --config.data.path=DIR

Any field of the config is a flag; configs/base.py explains them all:

  --config.training.steps=2000 --config.training.batch_size=64 --config.mesh.fsdp=4

The run shows a line every few seconds and writes metrics.jsonl, TensorBoard curves and checkpoints
into --workdir. Ctrl-C or SIGTERM saves and ends it (a second one ends it at once); the same command
goes on where it stopped.
--profile=10:13 writes an xprof trace of steps 10 to 13 into --workdir/profile
(docs/train.md).
On many hosts, one process on each: docs/pods.md.
Exit codes: 0 done, 2 bad flags or config, 3 bad data, 4 diverged, 5 storage, 130 stopped by Ctrl-C,
143 preempted.
"""

from pathlib import Path

from absl import flags

from launch import entry, screen
from snapvideo_jax.train import train
from snapvideo_jax.training import profiler

entry.define_config()
WORKDIR = entry.define_folder("workdir", "Folder of the run; created if absent.")
PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST, the steps to trace for xprof.")
RECORD_ROWS = flags.DEFINE_bool(
    "record_rows",
    False,
    "Write a digest of every row of data (launch.verify_resume compares them).",
)


def run() -> None:
    """Trains the config in --workdir."""
    profile = profiler.parse(PROFILE.value) if PROFILE.value is not None else range(0)
    train(flags.FLAGS.config, Path(WORKDIR.value), screen.say, profile, RECORD_ROWS.value)


if __name__ == "__main__":
    entry.run(run)
