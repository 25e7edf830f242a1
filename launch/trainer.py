"""launch.train as a child process: started, watched by its checkpoints, and ended by a signal."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import jax

from launch import cluster
from snapvideo_jax import storage
from snapvideo_jax.errors import UserError
from snapvideo_jax.parallel import hosts

POLL = 0.002  # seconds between two looks at the folder: a step may take few of them
OTHERS = 1800  # seconds for the job's first process to compare what it alone compares


def in_job() -> bool:
    """Returns whether flags or a cluster make a child one of a job of many processes."""
    in_cluster = cluster.started_by_cluster(os.environ, jax.config.values["jax_platforms"] or "")
    return in_cluster or cluster.job_from_flags(in_cluster) is not None


def train_until(workdir: Path, step: int, flags: Sequence[str], end: signal.Signals) -> bool:
    """Trains in `workdir` until the checkpoint of `step` is committed, and then sends `end`.

    flags: of launch.train, but for --workdir. Returns whether the child was the first process of
    its job. Raises UserError, with what the child said and its exit code, if it ends before.
    """
    saved, command = workdir / "checkpoints" / str(step), [sys.executable, "-m", "launch.train"]
    with tempfile.TemporaryFile() as stderr:
        with _child([*command, *flags, f"--workdir={workdir}"], stderr) as child:
            while child.poll() is None and not saved.exists():
                time.sleep(POLL)
            if child.poll() is None:
                child.send_signal(end)
            child.wait()
        if not saved.exists():
            raise _failure(child.returncode, stderr)
        return (workdir / "lock").read_text() == f"{hosts.process_name(child.pid)}\n"


def follow(first: bool, path: Path, function: Callable[[], list]) -> list:
    """Returns `function()` (JSON), which the job's first process alone calls and writes to `path`.

    The others wait for that file, so none goes on before the first one's child has ended. With one
    process, it is the first.
    """
    if first:
        storage.write(path, json.dumps(function()).encode())
    deadline = time.monotonic() + OTHERS
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"waited {OTHERS} s for {path}, which the job's first process writes")
        time.sleep(0.1)
    return json.loads(path.read_bytes())


def passed_on(argv: Sequence[str], own: Sequence[str]) -> list[str]:
    """Returns the words of a command line without the flags that are its own."""
    words, skip = [], False
    for word in argv:
        flag, equals, _ = word.lstrip("-").partition("=")
        if skip or (word.startswith("-") and flag in own):
            skip = not skip and not equals  # then the next word is the flag's value
        else:
            words.append(word)
    return words


@contextlib.contextmanager
def _child(command: Sequence[str], stderr: IO[bytes]) -> Iterator[subprocess.Popen]:
    """Starts a process that does not outlive the block."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _failure(code: int, stderr: IO[bytes]) -> UserError:
    """Returns the error of a child that ended too early: its last line and its exit code."""
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    error = UserError(f"launch.train ended with exit code {code}: {last.removeprefix('error: ')}")
    error.exit_code = code if code > 0 else UserError.exit_code
    return error
