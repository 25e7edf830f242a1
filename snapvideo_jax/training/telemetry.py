"""What a run tells people: metrics.jsonl, lines on the screen, and boards.

metrics.jsonl holds only what is a function of the config (loss, norms, rate), so that a resumed
run writes the very bytes that the unbroken one would have; times go to screen and boards.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Shaped

from snapvideo_jax import storage
from snapvideo_jax.errors import DivergedError, StorageError
from snapvideo_jax.fields import STEP
from snapvideo_jax.parallel import hosts
from snapvideo_jax.training.boards import Board
from snapvideo_jax.training.progress import Progress, Speed

ENTRIES = {"step": STEP}
MEASURED = "evaluation/"  # before the names of what an evaluation measured


class MetricsFile:
    """metrics.jsonl: one JSON object a line, in the order of steps."""

    def __init__(self, path: Path, resume_step: int):
        """Keeps the lines up to `resume_step`; later ones belong to steps that are run again.

        An evaluation of that step comes again too, after its line. Damaged lines are left out.
        Raises StorageError where the file cannot be read or written.
        """
        self._path, self._pending = path, b""
        lines = [row.line for row in rows(path) if row.place <= (resume_step, False)]
        storage.write(path, b"".join(lines))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and hands it to the system at once.

        Raises StorageError where that fails; the line then waits for the next call.
        """
        self._pending += json.dumps({"step": step} | values).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Writes the lines that wait; raises StorageError where that fails."""
        if self._pending:
            storage.append(self._path, self._pending)
            self._pending = b""


class Row(NamedTuple):
    """A line of metrics.jsonl, and what it says."""

    line: bytes
    entries: dict[str, Any]

    @property
    def is_evaluation(self) -> bool:
        """Whether it says what was measured of the model, not how a step went."""
        return "loss" not in self.entries

    @property
    def place(self) -> tuple[int, bool]:
        """Its place in the file's order: an evaluation comes after the line of its step."""
        return self.entries["step"], self.is_evaluation


def rows(path: Path) -> Iterator[Row]:
    """Yields each row of a file that is whole and in order."""
    if not path.exists():
        return
    try:
        lines = storage.read(path).splitlines(keepends=True)
    except storage.Damaged as damage:
        raise StorageError(f"{path} {damage}") from damage
    last = (0, True)
    for line in lines:
        with contextlib.suppress(storage.Damaged):
            row = Row(line, storage.parse_object(line, ENTRIES))
            if row.place > last and line.endswith(b"\n"):
                last = row.place
                yield row


class Nowhere:
    """What the other processes of a job have instead of the first one's MetricsFile."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""


class Report:
    """Metrics file, screen and boards of one run; a context to be closed."""

    def __init__(
        self,
        *,
        workdir: Path,
        start: int,
        skipped: int,
        steps: int,
        batch_size: int,
        learning_rates: Float[np.ndarray, " N"],
        max_skipped: int,
        metrics_every: int,
        every_seconds: float,
        saved_steps: Callable[[], list[int]],
        log: Callable[[str], None],
        boards: Sequence[Board] = (),
        waited: Callable[[], float] = lambda: 0.0,
        drawn: Callable[[], float] = lambda: 0.0,
        speed: Callable[[], Speed | None] = lambda: None,
    ):
        """Opens the metrics file.

        Args:
            workdir: folder of the run.
            start: steps done.
            skipped: those of them that changed nothing.
            steps: the last step.
            batch_size: examples a step.
            learning_rates: of each update.
            max_skipped: steps in a row that may be skipped.
            metrics_every: steps between lines of metrics.jsonl.
            every_seconds: between lines on the screen.
            saved_steps: returns the steps of the checkpoints that there are.
            log: called with each line for the screen.
            boards: open ones, which are closed with the report.
            waited: returns the seconds that the loop has waited for batches so far.
            drawn: returns those that samples and evaluations have taken, no part of a step's time.
            speed: returns what TFLOP/s and MFU are computed from, where the devices are known.
        """
        self._workdir, self._steps, self._metrics_every = workdir, steps, metrics_every
        self._batch_size, self._saved_steps, self._step = batch_size, saved_steps, start
        self._learning_rates, self._max_skipped = learning_rates, max_skipped
        self._skipped, self._skipped_in_a_row = skipped, 0
        self._log, self._holds_back = log, False  # lines of metrics.jsonl
        self._file = Nowhere()
        if hosts.is_first():
            self._file = MetricsFile(workdir / "metrics.jsonl", start)
        self._boards = boards
        self._progress = Progress(
            start=start,
            steps=steps,
            batch_size=batch_size,
            every_seconds=every_seconds,
            log=log,
            waited=waited,
            drawn=drawn,
            speed=speed,
        )

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *error: object) -> None:
        for board in self._boards:
            board.close()

    def step(self, step: int, metrics: dict[str, Shaped[Array, ""]]) -> None:
        """Fetches one step's metrics, writes them, and gives up on a run that has diverged."""
        values = {name: np.asarray(value).item() for name, value in metrics.items()}
        values["learning_rate"] = self._learning_rates[step - 1 - self._skipped].item()
        rates = self._progress.step(step, values["loss"])
        if step % self._metrics_every == 0 or step == self._steps:
            self._write(step, values)
        if rates:
            self._show(step, rates)
        self._skipped += int(values["skipped"])
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if values["skipped"] else 0
        self._step = step
        if self._skipped_in_a_row >= self._max_skipped:
            raise self.diverged()

    def _write(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of metrics, or holds it back until there is room: no save comes before."""
        self._show(step, values)
        try:
            self._file.write(step, values)
        except StorageError as error:
            if not self._holds_back:
                self._log(f"{error}; metrics wait in memory until there is room")
            self._holds_back = True
        else:
            self._holds_back = False

    def _show(self, step: int, values: dict[str, float]) -> None:
        for board in self._boards:
            board.scalars(step, values)

    def flush(self) -> None:
        """Writes the metrics that wait; raises StorageError where that fails."""
        self._file.flush()

    @property
    def skips(self) -> bool:
        """Whether the last step was skipped, its loss or gradient not being finite."""
        return self._skipped_in_a_row > 0

    def diverged(self, broken: Sequence[str] = ()) -> DivergedError:
        """Returns the error of a run that ends while steps are skipped.

        broken: the leaves of the state that the last update left not finite, if any.
        """
        first = self._step - self._skipped_in_a_row + 1  # skipped, or sure to be
        at, B = first, self._batch_size
        what = f"no update was made since step {first}, whose loss is not finite"
        if broken:
            at, what = first - 1, f"the update of step {first - 1} left {broken[0]} not finite"
        # The loss of step first - 1 was finite: so were the parameters before its update.
        saved = self._saved_steps()
        sound = [step for step in saved if step < first - 1]
        later = [step for step in saved if step >= first - 1]
        advice = "no checkpoint is from before it"
        if sound:
            advice = f"the last checkpoint from before it is step {max(sound)}"
        if sound and later:
            advice += f"; to go on from there, delete {', '.join(map(str, sorted(later)))}"
        return DivergedError(
            f"{what}; the batch of step {at} (examples {(at - 1) * B} to {at * B - 1} in "
            f"the order of the data) or the update of step {first - 1} is what broke it; {advice} "
            f"in {self._workdir / 'checkpoints'}; lower optimizer.learning_rate in a new run if it "
            "breaks again"
        )

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Writes what was measured of the model after `step`."""
        values = {f"{MEASURED}{name}": value for name, value in values.items()}
        self._write(step, values)

    def samples(self, step: int, moving: Path) -> None:
        """Shows a GIF file of samples on the boards."""
        for board in self._boards:
            board.samples(step, moving)
