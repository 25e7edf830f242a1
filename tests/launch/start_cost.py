"""What the checks cost a start: launch.train from nothing to the first step of a resumed run.

  python -m tests.launch.start_cost

Starts with all checks and starts without take turns, each in a process of its own. What they take
of the processor is printed, and not of the clock, so that other work on the machine hardly counts.
"""

import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TURNS = 5
TRAIN = ("launch.train", "--config=tests/tiny.py")


def main() -> None:
    """Prints the median of both, and their ratio."""
    seconds: dict[str, list[float]] = {"checked": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        workdir = f"--workdir={Path(folder) / 'run'}"
        train = [sys.executable, "-m", *TRAIN, workdir, "--config.training.steps=3"]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
        for _ in range(TURNS):
            for name, taken in seconds.items():
                child = [sys.executable, "-m", "tests.launch.start_cost", name, workdir]
                done = subprocess.run(child, check=True, capture_output=True, text=True)
                taken.append(float(done.stdout))
    checked, bare = (statistics.median(taken) for taken in seconds.values())
    print({name: [round(s, 2) for s in sorted(taken)] for name, taken in seconds.items()})
    print(f"checked {checked:.2f} s, bare {bare:.2f} s of processor: {checked / bare - 1:+.1%}")


def start(workdir: str) -> None:
    """Resumes the run, and ends at its first step with the seconds of processor so far."""
    from launch import screen

    def say(line: str) -> None:
        if line.startswith("first step"):
            print(time.process_time(), flush=True)
            os._exit(0)

    screen.say = say
    sys.argv = [*TRAIN, workdir]
    runpy.run_module(TRAIN[0], run_name="__main__", alter_sys=True)


def without_checks() -> None:
    """Replaces what checks config, fields, numerics, folder, data, experiment and digests."""
    from snapvideo_jax import build, fields, numerics, storage, train
    from snapvideo_jax.training import checkpoint, leaf_digests, resume

    nothing = lambda *arguments, **more: None
    for module, name in (
        *((build, "check"), (fields, "check"), (storage, "probe"), (storage, "check_seal")),
        *((resume, "check_same_experiment"), (train, "_check_memory")),
        (checkpoint, "check_never_saved"),
    ):
        assert hasattr(module, name)
        setattr(module, name, nothing)
    numerics.check = lambda: numerics.PINNED
    leaf_digests.of = lambda tree: {}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        if sys.argv[1] == "bare":
            without_checks()
        start(sys.argv[2])
