"""Proves that a run which is killed and resumed here ends as one that nothing disturbed.

  python -m launch.verify_resume --config=configs/shapes.py --steps=10
  python -m launch.verify_resume --config=configs/shapes.py --workdir=runs/shapes --replay=500

The first trains twice --steps straight; and --steps, kill -9, and --steps resumed: by launch.train
in processes of its own, with every field of the config as it would train (but for log and
checkpoint). Then every leaf of parameters, EMA and optimizer state, every line of metrics and every
row of data are compared bit by bit. Both runs stay in --workdir; without it, in a folder that goes
when they are the same.

--replay=STEP trains again from the checkpoint of STEP of the run in --workdir to the next one that
is stored, and compares the digests of all leaves: a check of the hardware, whose config and devices
must be those of the run. It works in --workdir/replay-STEP, which goes when all is the same.

On many hosts: the same command on each, with the flags or the cluster of launch.train
(docs/hosts.md), and a --workdir that all of them share.
Exit codes: 0 the same, 1 they differ, 2 bad flags or config; others as of launch.train.
"""

import functools
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from launch import entry, number_flags, screen, trainer
from snapvideo_jax import fields, storage
from snapvideo_jax.errors import ConfigError, UserError
from snapvideo_jax.kinds import Whole
from snapvideo_jax.training import comparison
from snapvideo_jax.training.comparison import Difference

entry.define_config()
STEPS = number_flags.define("steps", None, Whole(1, 1_000_000), "Before the kill, and after (10).")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for both runs; with --replay, of the run.")
REPLAY = number_flags.define("replay", None, fields.STEP, "Checkpoint to train again from.")
OWN = ("steps", "workdir", "replay")  # flags that are not launch.train's
VERDICT = "verdict.json"
SHOWN = 20  # differences on the screen


def run() -> None:
    """Trains, compares, and prints the verdict."""
    jax.config.update("jax_platforms", "cpu")  # the devices belong to the children
    if REPLAY.value is not None:
        entry.refuse_unread("a verification without --replay", STEPS)
        verify_hardware(REPLAY.value)
    else:
        verify_resume(STEPS.value or 10, flags.FLAGS.config.training.steps)


def verify_resume(steps: int, total: int) -> None:
    """Compares a straight run with one that is killed and resumed; `total` is training.steps."""
    if total < 2 * steps:
        raise ConfigError(
            f"--steps={steps} trains {2 * steps} steps, and the config has training.steps={total}; "
            f"give --steps={max(1, total // 2)} or less"
        )
    if WORKDIR.value is None and trainer.in_job():
        raise ConfigError("--workdir is required in a job: a folder that all hosts share")
    workdir = storage.make_folder(WORKDIR.value or tempfile.mkdtemp(prefix="verify-resume-"))
    straight, resumed = workdir / "straight", workdir / "resumed"
    if (straight / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds an earlier verification; choose another --workdir")
    train = functools.partial(trainer.train_until, flags=train_flags(every=steps))
    screen.say(f"1/3: {2 * steps} steps straight, in {straight}")
    first = train(straight, 2 * steps, end=signal.SIGTERM)
    trainer.follow(first, workdir / "1.json", list)
    screen.say(f"2/3: {steps} steps and kill -9, in {resumed}")
    train(resumed, steps, end=signal.SIGKILL)
    trainer.follow(first, workdir / "2.json", lambda: comparison.check_newest(resumed, steps))
    screen.say(f"3/3: resumed to step {2 * steps}")
    train(resumed, 2 * steps, end=signal.SIGTERM)
    conclude(
        trainer.follow(first, workdir / VERDICT, lambda: comparison.runs(straight, resumed, steps)),
        same=f"parameters, EMA and optimizer after steps {steps} and {2 * steps}, {2 * steps} "
        "lines of metrics, and every row of data",
        different="the resumed run is not the straight one",
        workdir=workdir,
    )
    if WORKDIR.value is None:
        shutil.rmtree(workdir)


def verify_hardware(step: int) -> None:
    """Trains again from the checkpoint of `step` to the next that is stored, and compares."""
    if WORKDIR.value is None:
        raise ConfigError("--replay needs --workdir, the folder of a run")
    workdir = Path(WORKDIR.value)
    folder, later = workdir / f"replay-{step}", comparison.next_step(workdir, step)
    if (folder / VERDICT).exists():
        raise ConfigError(f"{folder} is of an earlier replay; delete it to train again")
    comparison.check_same_arithmetic(workdir, later, flags.FLAGS.config)
    comparison.branch(workdir, step, folder)
    screen.say(f"from step {step} to {later} again, in {folder}")
    first = trainer.train_until(folder, later, train_flags(every=later), signal.SIGTERM)
    conclude(
        trainer.follow(
            first, folder / VERDICT, lambda: comparison.replay(workdir, folder, step, later)
        ),
        same=f"steps {step + 1} to {later} gave the digests of checkpoint {later} again",
        different=f"steps {step + 1} to {later} gave other numbers than in the run",
        workdir=folder,
    )
    if not trainer.in_job():
        shutil.rmtree(folder)


def conclude(differences: Sequence, same: str, different: str, workdir: Path) -> None:
    """Prints that all is the same; raises UserError with the first difference if it is not."""
    if differences:
        for step, what in differences[:SHOWN]:
            screen.say(f"  step {step}: {what}")
        first = comparison.summary([Difference(*each) for each in differences])
        raise UserError(f"{different}: {first}; both are in {workdir}")
    screen.say(f"the same, bit for bit: {same}")


def train_flags(every: int) -> list[str]:
    """Returns the flags for launch.train: those of this command, and what makes runs comparable."""
    return [
        *trainer.passed_on(sys.argv[1:], OWN),
        f"--config.checkpoint.every_steps={every}",
        "--config.checkpoint.keep_last=1000000",
        "--config.log.metrics_every=1",
        "--config.log.samples_every=0",
        "--config.log.evaluate_every=0",
        "--record_rows",
    ]


if __name__ == "__main__":
    entry.run(run, joins=lambda: False)
