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
  python -m launch.train --status=runs/shapes     what a run has come to, alive or dead

--profile=10:13 writes an xprof trace of steps 10 to 13 into --workdir/profile
(docs/train.md).
On many hosts, one process on each: docs/pods.md.
Exit codes: 0 done, 2 bad flags or config, 3 bad data, 4 diverged, 5 storage, 130 stopped by Ctrl-C,
143 preempted.
"""

from pathlib import Path

from absl import flags

from launch import entry, screen
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.train import train
from snapvideo_jax.training import boards, profiler, status

entry.define_config()
WORKDIR = entry.define_folder("workdir", "Folder of the run; created if absent.", required=False)
STATUS = flags.DEFINE_string("status", None, "Folder of a run, whose state is shown; trains none.")
PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST, the steps to trace for xprof.")
TRACKER = flags.DEFINE_enum(
    "tracker", None, boards.TRACKERS, "Also shows curves and samples there; TensorBoard always."
)
RECORD_ROWS = flags.DEFINE_bool(
    "record_rows",
    False,
    "Write a digest of every row of data (launch.verify_resume compares them).",
)


def run() -> None:
    """Trains the config in --workdir, or shows what the run in --status has come to."""
    if STATUS.value is not None:
        entry.refuse_unread(
            "training, and --status trains none", WORKDIR, PROFILE, TRACKER, RECORD_ROWS
        )
        screen.say(status.screen(status.read(Path(STATUS.value))))
        return
    if WORKDIR.value is None:
        raise ConfigError("flags: --workdir is required")
    profile = profiler.parse(PROFILE.value) if PROFILE.value is not None else range(0)
    boards.check_tracker(TRACKER.value)
    train(
        flags.FLAGS.config,
        Path(WORKDIR.value),
        screen.say,
        profile=profile,
        record_rows=RECORD_ROWS.value,
        tracker=TRACKER.value,
    )


if __name__ == "__main__":
    entry.run(run, joins=lambda: STATUS.value is None)
