"""How the processes of a job hear that one of them ends, was killed, or hangs.

A process that waits in a collective for one that is no more would wait for ever. So a thread of
each looks every POLL seconds at what the job's coordinator holds: whether a process announced its
end, and, on the first process, whether all others still count. The coordinator is in the first
process itself; that one hangs if it does not answer.

JAX's own heartbeats end a job too, after 100 seconds, with an abort and a stack trace; and at once
where the first process was killed.
"""

import atexit
import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax

from snapvideo_jax.parallel import hosts

POLL = 2  # seconds
MEET = 60  # seconds for the first process to say where it is, once all have joined
# Polls without a new count. While the training step of the 3.9B model is traced and lowered on two
# busy cores, a thread of Python is late by 1.4 seconds at most (measured).
SILENT = 4
_END = "snapvideo_jax: why the job ends"
_FORCED = "snapvideo_jax: a process ends from a thread"
_HOSTS = "snapvideo_jax: hosts"
_COUNTS = "snapvideo_jax: counts"
_LEFT = "left"  # in the place of a count
_over = threading.Event()  # this process does not count any more
_counting = threading.Lock()

# Exit code, why, and whether a process is lost, so that not all can end together.
Leave = Callable[[int, str, bool], None]


class Silence:
    """Which of the processes of a job stopped counting."""

    def __init__(self, processes: Iterable[int]):
        self._last = {process: ("", 0) for process in processes}  # count, and polls since it came

    def poll(self, counts: dict[int, str]) -> int | None:
        """Takes the counts of one poll; returns a process that is silent for SILENT polls."""
        for process, (last, polls) in self._last.items():
            count = counts.get(process, last)
            is_new = count != last or count in ("", _LEFT)  # "": it has not begun
            self._last[process] = count, 0 if is_new else polls + 1
        silent = (process for process, (_, polls) in self._last.items() if polls >= SILENT)
        return next(silent, None)


def announce(code: int, line: str, is_lost: bool = False) -> None:
    """Says to the other processes of a job that it ends: with which exit code, and why.

    is_lost: because a process does not answer; otherwise this one is meant, and its number added.
    """
    line = line if is_lost else f"{line} (process {jax.process_index()})"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one did so before
        _coordinator().key_value_set(_END, json.dumps([code, line, is_lost]))


def announce_leaving() -> None:
    """Says that this process is done, so that the others, which may not be, do not miss it."""
    with _counting:
        _over.set()
        _count(_LEFT)


def watch(leave: Leave) -> None:
    """Calls `leave`, in a thread, when a process announces its end or is silent."""
    answered = threading.Event()
    _coordinator().key_value_set(f"{_HOSTS}/{jax.process_index()}", socket.gethostname())
    _count("0")
    threads = [threading.Thread(target=_look, args=(leave, answered), daemon=True)]
    if not hosts.is_first():
        host = _coordinator().blocking_key_value_get(f"{_HOSTS}/0", int(1e3 * MEET))
        threads.append(threading.Thread(target=_guard, args=(leave, answered, host), daemon=True))
    for thread in threads:
        thread.start()

    def stop() -> None:  # a thread within JAX would abort an interpreter that ends
        _over.set()
        for thread in threads:
            thread.join()

    atexit.register(stop)


def _look(leave: Leave, answered: threading.Event) -> None:
    """Counts, and looks at what the coordinator holds, until something ends the job."""
    coordinator, names = _coordinator(), dict[int, str]()
    silence = Silence(range(1, jax.process_count()) if hosts.is_first() else ())
    for count in itertools.count(1):
        _over.wait(POLL)
        with _counting:
            if _over.is_set():
                return
            _count(str(count))
        answered.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody announced anything
            leave(*json.loads(coordinator.key_value_try_get(_END)))
            return
        names = names or _entries(_HOSTS)
        lost = silence.poll(_entries(_COUNTS))
        if lost is not None:
            why = _lost(lost, names.get(lost, "?"))
            announce(1, why, is_lost=True)
            leave(1, why, True)
            return


def _guard(leave: Leave, answered: threading.Event, host: str) -> None:
    """Ends this process where the coordinator, on `host`, does not answer.

    Polls are counted rather than seconds: this process may have been stopped as well.
    """
    polls = 0
    while not _over.wait(POLL):
        polls = 0 if answered.is_set() else polls + 1
        answered.clear()
        if polls > SILENT:
            leave(1, _lost(0, host), True)
            return


def _lost(process: int, host: str) -> str:
    return (
        f"process {process} of the job, on {host}, was killed or hangs: see what it said last, "
        "and start the job again"
    )


def _count(text: str) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the coordinator is gone
        name = f"{_COUNTS}/{jax.process_index()}"
        _coordinator().key_value_set(name, text, allow_overwrite=True)


def _entries(folder: str) -> dict[int, str]:
    """Returns what the processes wrote to a folder of the coordinator, by process."""
    try:
        pairs = _coordinator().key_value_dir_get(folder)
    except jax.errors.JaxRuntimeError:
        return {}
    return {int(name.rpartition("/")[2]): text for name, text in pairs}


def all_leave_forced(seconds: float) -> None:
    """Does as `hosts.all_leave`, in a thread that ends a process whose main thread is stuck."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _coordinator().key_value_set(f"{_FORCED}/{jax.process_index()}", "")
    hosts.all_leave(seconds)


def is_forced() -> bool:
    """Returns whether a process of the job has called `all_leave_forced`."""
    return bool(_coordinator().key_value_dir_get(_FORCED))


def _coordinator() -> Any:
    """Returns the coordinator of the job, which holds texts by name."""
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client()
