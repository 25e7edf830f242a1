"""A run that is ended forty times at random is the run that nobody disturbed, bit for bit."""

import random
import signal
import subprocess
import sys
import time

import pytest

from snapvideo_jax.training import checkpoint, comparison
from tests.launch.test_entry import ENVIRONMENT, ROOT

STEPS = 500
ENDS = 20  # of each kind
LIMIT = 120  # seconds for anything that a start waits for
COMMAND = (
    sys.executable,
    "-m",
    "launch.train",
    "--config=tests/tiny.py",
    f"--config.training.steps={STEPS}",
    "--config.checkpoint.every_steps=5",
    "--record_rows",
)

pytestmark = pytest.mark.faults


def start(workdir):
    """launch.train as a process; what it says goes into a file beside its folder."""
    command = [*COMMAND, f"--workdir={workdir}"]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)


def wait_until(condition, process):
    """Waits until `condition`; the process must not end before."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def newest(workdir):
    return max(checkpoint.step_folders(workdir / "checkpoints"), default=0)


def is_saving(workdir):
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def end(workdir, number, in_a_save, seconds):
    """Starts the run and ends it so long after it saved anew, or while it saves; its exit code."""
    before = newest(workdir)
    process = start(workdir)
    try:
        wait_until(lambda: newest(workdir) > before, process)
        time.sleep(seconds)
        if in_a_save:
            wait_until(lambda: is_saving(workdir), process)
        process.send_signal(number)
        return process.wait(LIMIT)
    finally:
        process.kill()


def test_forty_ends_change_no_bit(tmp_path):
    draw = random.Random(0)
    straight, ended = tmp_path / "straight", tmp_path / "ended"
    assert start(straight).wait(1200) == 0
    saving = 0
    for k in range(2 * ENDS):
        number = (signal.SIGTERM, signal.SIGKILL)[k % 2]
        in_a_save = k % 4 == 3  # half of the kills
        code = end(ended, number, in_a_save, draw.uniform(0.0, 0.2))
        assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        saving += is_saving(ended)
    assert saving >= 3  # kills that really cut a save short
    assert start(ended).wait(1200) == 0
    assert comparison.states(straight, ended, STEPS) == []
    every = range(1, STEPS + 1)
    assert comparison.metrics(straight, ended, every, all_there=True) == []
    assert comparison.rows(straight, ended, every) == []
