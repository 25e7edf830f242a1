"""One video at a time: the thread that makes it, how far it is, and how it is stopped."""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from snapvideo_jax.errors import UserError, reason
from snapvideo_jax.pace import Pace
from snapvideo_jax.page.form import Values

Progress = Callable[[int, int], None]  # (how many are done, of how many)


class Busy(Exception):
    """Another video is being made."""


class Cancelled(Exception):
    """A person has cancelled the job."""


@runtime_checkable
class Maker(Protocol):
    """What makes a video from the values of the form."""

    def notes(self, values: Values) -> list[str]:
        """Returns a line for each thing that the model was never shown."""
        ...

    def make(self, values: Values, progress: Callable[[str], Progress]) -> str:
        """Makes the video and returns its name; `progress` is as for `stage.cascade`."""
        ...


class Reached(NamedTuple):
    """How far a job is. stage: the first is 1, and 0 is before it. of: 0 where not known yet."""

    stage: int = 0
    done: int = 0
    of: int = 0
    seconds_left: float | None = None


class Job:
    """A video that is being made, from its first second to its end."""

    def __init__(self, number: int, values: Values):
        self.number = number
        self._values, self._notes, self._reached = values, [], Reached()
        self._state, self._message, self._video = "running", "", ""
        self._start, self._end = time.monotonic(), None
        self._cancel = threading.Event()

    @property
    def is_running(self) -> bool:
        """Whether its thread still works."""
        return self._state == "running"

    def cancel(self) -> None:
        """Lets the thread stop at its next report."""
        self._cancel.set()

    def run(self, maker: Maker) -> None:
        """Makes the video, or says why there is none."""
        state = "failed"
        try:
            self._notes = maker.notes(self._values)
            self._video = maker.make(self._values, self._begin_stage)
            state = "done"
        except Cancelled:
            state = "cancelled"
        except UserError as error:
            self._message = reason(error)
        except Exception as error:  # the page goes on, and says what it was
            self._message = f"{type(error).__name__}: {reason(error)[:400]}"
        self._end = time.monotonic()
        self._state = state

    def describe(self) -> dict[str, Any]:
        """Returns what the page shows of it."""
        cancelling = self.is_running and self._cancel.is_set()
        return {
            "number": self.number,
            "state": "cancelling" if cancelling else self._state,
            "values": self._values,
            "notes": self._notes,
            **self._reached._asdict(),
            "seconds": (self._end or time.monotonic()) - self._start,
            "message": self._message,
            "video": self._video,
        }

    def _begin_stage(self, things: str) -> Progress:
        """Returns what takes a stage's reports; it raises Cancelled where that is due."""
        stage, pace = self._reached.stage + 1, Pace()

        def report(done: int, of: int) -> None:
            left = pace.seconds_left(done, of, time.monotonic())
            self._reached = Reached(stage, done, of, left)
            self._stop_if_cancelled()

        self._stop_if_cancelled()
        self._reached = Reached(stage)
        return report

    def _stop_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Cancelled


class Jobs:
    """The videos that a page makes, one after the other."""

    def __init__(self, maker: Maker):
        self._maker, self._lock = maker, threading.Lock()
        self._last: Job | None = None

    def start(self, values: Values) -> Job:
        """Starts to make a video; raises Busy while another one is being made."""
        with self._lock:
            last = self._last
            if last and last.is_running:
                raise Busy
            job = self._last = Job(last.number + 1 if last else 1, values)
        threading.Thread(target=job.run, args=(self._maker,), name="video", daemon=True).start()
        return job

    def cancel(self, number: int) -> None:
        """Cancels the job of that number, if it is the one that runs."""
        if self._last and self._last.number == number:
            self._last.cancel()

    def describe(self) -> dict[str, Any] | None:
        """Returns what the page shows of the last job; None before the first."""
        return self._last.describe() if self._last else None
