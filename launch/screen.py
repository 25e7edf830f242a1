"""What a command shows: lines on the screen, progress, and an error as one line."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from snapvideo_jax.errors import Preempted, Stopped, UserError
from snapvideo_jax.pace import Pace
from snapvideo_jax.parallel import hosts
from snapvideo_jax.units import duration_text


def speaks() -> bool:
    """Returns whether this process speaks for the job: it is the only one, or the first."""
    return not jax.distributed.is_initialized() or hosts.is_first()


def say(text: str) -> None:
    """Prints a line at once; in a job of many processes, only the first prints.

    Where nobody reads any more, as after `| head`, the command ends as by SIGTERM: a run is saved.
    """
    if not speaks():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


def progress(things: str) -> Callable[[int, int], None]:
    """Returns report(done, total), which prints the time left every few seconds and at the end."""
    start = last = time.monotonic()
    pace = Pace()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        left = pace.seconds_left(done, total, now)
        if done < total and now - last < 3:
            return
        last = now
        line = f"{done}/{total} {things} in {duration_text(now - start)}"
        say(f"{line}, {duration_text(left)} left" if left else line)

    return report


def replacements() -> Callable[[str, str], None]:
    """Returns report(path, reason), which prints each bad file, but a file only the first time."""
    seen = set()

    def report(path: str, reason: str) -> None:
        if path not in seen:
            seen.add(path)
            say(f"replaced: {path}: {reason}")

    return report


def ignore_closed_loops() -> None:
    """Lets no stack be printed of threads of Orbax that come late after a save that failed.

    They call into an event loop that it closed; the failure itself is raised.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of tasks that nobody waits for now
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            others(unraisable)

    sys.unraisablehook = hook


def print_error(error: UserError) -> None:
    """Prints one line to stderr, after all that stdout still holds."""
    sys.stdout.flush()
    label = "" if isinstance(error, Preempted | Stopped) else "error: "
    print(f"{label}{one_line(error)}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """Returns what the error says, without line breaks and without a config file's traceback."""
    cause = error.args[0] if error.args else None
    if isinstance(cause, KeyError):  # a field of a config that is not there
        return one_line(cause)
    text = str(cause if isinstance(error, KeyError) else error)
    head, traceback, rest = text.partition("Traceback (most recent call last):")
    if traceback:  # as ml_collections passes it on
        text = head + rest.strip().splitlines()[-1]
    return " ".join(text.split())
