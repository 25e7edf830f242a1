"""A run that is ended forty times at random is the run that nobody disturbed, bit for bit."""

import os
import random
import signal
import time

import pytest

from snapvideo_jax.training import checkpoint, comparison
from tests.fork_server import ForkServer
from tests.launch.test_entry import ENVIRONMENT

STEPS = 500
ENDS = 20  # of each kind
LIMIT = 120  # seconds for anything that a start waits for

pytestmark = pytest.mark.faults


@pytest.fixture
def commands():
    with ForkServer(ENVIRONMENT, "clu.metric_writers") as server:  # it imports tensorflow
        yield server


def start(commands, workdir, save_every):
    """Starts the run, or goes on with it; returns the id of its process."""
    return commands.start(
        "train",
        "--config=tests/tiny.py",
        f"--workdir={workdir}",
        f"--config.training.steps={STEPS}",
        f"--config.checkpoint.every_steps={save_every}",
        "--record_rows",
    )


def wait_until(condition, pid):
    """Waits until `condition`; the process must not end before."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        os.kill(pid, 0)  # raises where there is none
        assert time.monotonic() < deadline
        time.sleep(0.003)


def newest(workdir):
    return max(checkpoint.step_folders(workdir / "checkpoints"), default=0)


def is_saving(workdir):
    return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def end(commands, workdir, number, in_a_save, seconds):
    """Starts the run and ends it so long after it saved anew, or while it saves; its exit code."""
    before = newest(workdir)
    pid = start(commands, workdir, save_every=5)
    wait_until(lambda: newest(workdir) > before, pid)
    time.sleep(seconds)
    if in_a_save:
        wait_until(lambda: is_saving(workdir), pid)
    os.kill(pid, number)
    return commands.wait().returncode


def finish(commands, workdir):
    start(commands, workdir, save_every=100)
    done = commands.wait()
    assert done.returncode == 0, done.stderr


def test_forty_ends_change_no_bit(commands, tmp_path):
    draw = random.Random(0)
    straight, ended = tmp_path / "straight", tmp_path / "ended"
    finish(commands, straight)
    saving = 0
    for k in range(2 * ENDS):
        number = (signal.SIGTERM, signal.SIGKILL)[k % 2]
        in_a_save = k % 4 == 3  # half of the kills
        code = end(commands, ended, number, in_a_save, draw.uniform(0.0, 0.2))
        assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        saving += is_saving(ended)
    assert saving >= 3  # kills that really cut a save short
    finish(commands, ended)
    assert comparison.states(straight, ended, STEPS) == []
    every = range(1, STEPS + 1)
    assert comparison.metrics(straight, ended, every, all_there=True) == []
    assert comparison.rows(straight, ended, every) == []
