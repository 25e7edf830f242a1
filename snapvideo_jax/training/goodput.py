"""goodput.json: where the time of a run went, over all its starts.

Its seconds are those of the first process, from when `train` begins. What a kill does not let it
write, the last WRITE_EVERY seconds, is missing, and so is the time between two starts. Steps that a
start runs again, because they came after the checkpoint that it resumes from, are lost.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from snapvideo_jax import storage
from snapvideo_jax.errors import StorageError
from snapvideo_jax.fields import STEP
from snapvideo_jax.kinds import Real, Table, Whole
from snapvideo_jax.parallel import hosts
from snapvideo_jax.units import count_text, duration_text

# What takes time, and its words for people; all that is timed as nothing else is training.
PARTS = {
    "start": "starting",
    "compile": "compiling",
    "data": "waiting for data",
    "checkpoint": "saving",
    "pictures": "samples and evaluations",
}
COUNT = Whole(0, 10**12)
SECONDS = Real(0.0, 1e12)
ENTRIES = {
    "starts": COUNT,
    "step": STEP,  # the last one that was begun
    "steps": COUNT,  # of all starts
    "lost_steps": COUNT,
    "seconds": Table(SECONDS),
}
WRITE_EVERY = 10  # seconds


class Ledger:
    """Times what a run does, and adds it to what its earlier starts took."""

    def __init__(
        self,
        path: Path,
        start: int,
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Reads what earlier starts wrote; a file that is damaged counts for nothing.

        Args:
            path: of the file.
            start: the step that this start resumes from, or 0.
            began: when it began, by `clock`, in seconds.
        """
        self._path, self._clock, self._began, self._written = path, clock, began, clock()
        self._first = self._last = start
        self._seconds = dict.fromkeys(PARTS, 0.0) | {"start": self._written - began}
        self._before: dict[str, Any] = {
            "starts": 0, "step": start, "steps": 0, "lost_steps": 0, "seconds": {},
        }  # fmt: skip
        with contextlib.suppress(storage.Damaged):
            self._before = read(path)

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Adds the time of the block to a part; training, the rest, needs no adding."""
        before = self._clock()
        try:
            yield
        finally:
            if part in self._seconds:
                self._seconds[part] += self._clock() - before

    def seconds(self, part: str) -> float:
        """Returns what a part has taken in this start."""
        return self._seconds[part]

    def begin(self, step: int) -> None:
        """Notes that a step begins."""
        self._last = step
        if self._clock() - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Writes the file, on the first process; one that cannot be written ends nothing."""
        self._written = self._clock()
        if hosts.is_first():
            with contextlib.suppress(StorageError):
                storage.write(self._path, json.dumps(self.entries(), indent=2).encode() + b"\n")

    def entries(self) -> dict[str, Any]:
        """Returns the ledger of all starts, as the file holds it."""
        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        rest = self._clock() - self._began - sum(self._seconds.values())
        seconds["training"] = round(max(0.0, rest), 3)
        before = self._before
        return {
            "starts": before["starts"] + 1,
            "step": self._last,
            "steps": before["steps"] + self._last - self._first,
            "lost_steps": before["lost_steps"] + max(0, before["step"] - self._first),
            "seconds": {
                name: round(value + before["seconds"].get(name, 0.0), 3)
                for name, value in seconds.items()
            },
        }

    def summary(self) -> str:
        """Says in one line how much of all time trained the model, and where the rest went."""
        return summary(self.entries())


def read(path: Path) -> dict[str, Any]:
    """Reads the entries of a ledger; raises storage.Damaged if it has others, or none."""
    entries = storage.parse_object(storage.read(path), ENTRIES)
    storage.check_kinds(entries["seconds"], dict.fromkeys(PARTS | {"training": ""}, SECONDS))
    return entries


def summary(entries: Mapping[str, Any]) -> str:
    """Says in one line how much of a ledger's time trained the model, and where the rest went."""
    seconds, steps, lost = entries["seconds"], entries["steps"], entries["lost_steps"]
    total = max(sum(seconds.values()), 1e-9)
    lost_seconds = seconds["training"] * min(1.0, lost / max(steps, 1))
    share = lambda value: f"{100 * value / total:.0f} %"
    parts = [f"{words} {share(seconds[name])}" for name, words in PARTS.items()]
    return (
        f"goodput {share(seconds['training'] - lost_seconds)} of {duration_text(total)}: "
        f"{', '.join(parts)}, {count_text(lost, 'step')} trained again {share(lost_seconds)}; "
        f"{count_text(entries['starts'] - 1, 'restart')}"
    )


def seconds_a_step(entries: Mapping[str, Any]) -> float | None:
    """Returns what a step has taken, with all but starts and compiling; None before the first."""
    seconds = {**entries["seconds"], "start": 0.0, "compile": 0.0}
    return sum(seconds.values()) / entries["steps"] if entries["steps"] else None
