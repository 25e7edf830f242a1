"""Ctrl-C and SIGTERM: a line at once, and the end of the command within GRACE seconds.

Python runs a signal's handler in the main thread, between two of its instructions. While XLA
compiles or a device computes, that thread can be away for minutes. So the operating system also
writes the signal's number into a pipe, and a thread that reads it speaks and ends the process.

A training run whose steps are under way sets handlers of its own (hosts.Signals), to save first.
"""

import os
import select
import signal
import sys
import threading
from types import FrameType

ENDS = {signal.SIGINT: ("stopped", 130), signal.SIGTERM: ("terminated", 143)}  # as shells have it
SAVING = {
    signal.SIGINT: "stopping after this step, with a checkpoint; Ctrl-C again ends at once",
    signal.SIGTERM: "preempted: stopping after this step, with a checkpoint",
}
GRACE = 2  # seconds for the main thread to close what it has open
_lock = threading.Lock()
_ending: set[int] = set()  # the signal that ends this process, once that is announced


def watch() -> None:
    """Lets SIGINT and SIGTERM end this process with a line; to be called in the main thread."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for number in ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and "command &" have it ignored
            signal.signal(number, _interrupt)
    threading.Thread(target=_listen, args=(receiver,), name="signals", daemon=True).start()


def announce(number: int) -> int:
    """Prints the line of a signal that ends this process, the first time; returns the exit code."""
    word, code = ENDS[signal.Signals(number)]
    with _lock:
        if not _ending:
            _ending.add(number)
            print(word, file=sys.stderr, flush=True)
    return code


def ending(error: BaseException) -> int | None:
    """Returns the number of the signal that `error` comes from, or None."""
    if isinstance(error, KeyboardInterrupt):
        return error.args[0] if error.args else signal.SIGINT
    return next(iter(_ending), None)  # C++ code turns a KeyboardInterrupt into an error of its own


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _listen(receiver: int) -> None:
    """Ends the process GRACE seconds after a signal, or at once at the next."""
    saving = False
    while True:
        number = os.read(receiver, 1)[0]
        if number not in ENDS:
            continue
        if not saving and signal.getsignal(number) is not _interrupt:
            saving = True
            print(SAVING[signal.Signals(number)], file=sys.stderr, flush=True)
            continue
        code = announce(number)
        if not saving:
            select.select([receiver], [], [], GRACE)
        os._exit(code)
