"""What a run has come to, on one screen: read from the files of its folder, which stay as they are.

The run may be alive on this host, or on another, or dead. No device is touched, so that a run that
holds them all is not disturbed.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.fields import STEPS
from snapvideo_jax.kinds import Real, Table
from snapvideo_jax.parallel import hosts
from snapvideo_jax.training import checkpoint, goodput, telemetry
from snapvideo_jax.units import duration_text, number_text

WIDTH = 60  # characters of bar and curve
BARS = "▁▂▃▄▅▆▇█"
NUMBER = Real(-1e300, 1e300)


class Status(NamedTuple):
    """What the files of a run say.

    steps: its last step. step: the last one that it is known to have begun. saved: steps of its
    checkpoints, in order. losses: (step, loss). evaluation: (step, what was measured last).
    ledger: of the time, or why it cannot be used. silent: seconds since it wrote its metrics.
    """

    workdir: Path
    holder: hosts.Holder | None
    steps: int
    step: int
    saved: list[int]
    losses: list[tuple[int, float]]
    evaluation: tuple[int, dict[str, float]] | None
    ledger: dict[str, Any] | str | None
    silent: float | None
    pictures: list[str]
    bad_files: int


def read(workdir: Path) -> Status:
    """Reads the folder of a run.

    Raises ConfigError where it holds no run, and StorageError if its config or metrics cannot be
    read.
    """
    if not (workdir / "config.json").is_file():
        raise ConfigError(f"{workdir} holds no run: there is no config.json in it")
    ledger = _ledger(workdir / "goodput.json")
    begun = [ledger["step"]] if isinstance(ledger, dict) else []
    metrics = workdir / "metrics.jsonl"
    rows = list(telemetry.rows(metrics))
    steps = [row.entries for row in rows if not row.is_evaluation]
    losses = [
        (entries["step"], entries["loss"]) for entries in steps if NUMBER.holds(entries["loss"])
    ]
    measured = [row.entries for row in rows if row.is_evaluation]
    saved = sorted(checkpoint.step_folders(workdir / "checkpoints"))
    pictures = sorted(path.name for path in (workdir / "samples").glob("*"))
    return Status(
        workdir=workdir,
        holder=hosts.holder(workdir),
        steps=_steps(workdir / "config.json"),
        step=max([0, *saved, *(step for step, _ in losses[-1:]), *begun]),
        saved=saved,
        losses=losses,
        evaluation=(measured[-1]["step"], _values(measured[-1])) if measured else None,
        ledger=ledger,
        silent=time.time() - metrics.stat().st_mtime if metrics.exists() else None,
        pictures=pictures,
        bad_files=sum(len(_lines(path)) for path in sorted(workdir.glob("bad_records*.jsonl"))),
    )


def screen(status: Status) -> str:
    """Writes a status for people: a line each for state, steps, loss, checkpoints and time."""
    lines = {
        "": _state(status),
        "step": _progress(status),
        "loss": _curve(status.losses),
        "saved": ", ".join(f"{step:,}" for step in status.saved[-8:]) or "no checkpoint yet",
        "time": _time(status.ledger),
        "measured": _measured(status),
        "samples": f"{status.workdir / 'samples' / status.pictures[-1]}" if status.pictures else "",
        "data": _bad_data(status),
    }
    return "\n".join(f"{name:9s}{line}" for name, line in lines.items() if line)


def _state(status: Status) -> str:
    """Says whether the run is alive, done or dead, and what to do."""
    holder, done = status.holder, status.saved[-1:] == [status.steps]
    heard = f"; it wrote {duration_text(status.silent)} ago" if status.silent is not None else ""
    if holder and holder.holds:
        return f"{status.workdir} is running: {holder.owner}{heard}"
    if done:
        return f"{status.workdir} is done"
    if holder and holder.owner and not holder.here:
        return f"{status.workdir} was begun by {holder.owner}, which is not seen from here{heard}"
    goes_on = f"step {status.saved[-1]:,}" if status.saved else "the beginning"
    return f"{status.workdir} has ended{heard}; the same command goes on from {goes_on}"


def _progress(status: Status) -> str:
    """Draws how far the run is, and says how long the rest takes at the pace so far."""
    share = min(1.0, status.step / status.steps)
    bar = "█" * round(share * WIDTH)
    line = f"{bar:░<{WIDTH}s} {status.step:,} of {status.steps:,}"
    ledger = status.ledger
    pace = goodput.seconds_a_step(ledger) if isinstance(ledger, dict) else None
    left = max(0, status.steps - status.step)
    return f"{line}, {duration_text(left * pace)} left" if pace and left else line


def _curve(losses: list[tuple[int, float]]) -> str:
    """Draws the loss on a logarithmic scale, the mean of each part of the steps."""
    finite = [(step, loss) for step, loss in losses if loss > 0]
    if not finite:
        return ""
    parts = np.array_split(np.log([loss for _, loss in finite]), min(WIDTH, len(finite)))
    heights = np.array([part.mean() for part in parts])
    low, high = heights.min(), heights.max()
    scaled = (heights - low) / max(high - low, 1e-9) * (len(BARS) - 1)
    curve = "".join(BARS[round(height)] for height in scaled)
    first, last = (number_text(float(np.exp(height))) for height in (heights[0], heights[-1]))
    return f"{curve:{WIDTH}s} {first} to {last}"


def _measured(status: Status) -> str:
    """Lists the values of the last evaluation."""
    if status.evaluation is None:
        return ""
    step, values = status.evaluation
    shown = ", ".join(f"{name} {number_text(value)}" for name, value in values.items())
    return f"{shown} (step {step:,})"


def _bad_data(status: Status) -> str:
    if not status.bad_files:
        return ""
    return f"{status.bad_files:,} files could not be used: {status.workdir / 'bad_records.jsonl'}"


def _steps(path: Path) -> int:
    """Reads training.steps of a config; raises StorageError if it is damaged."""
    try:
        training = storage.parse_object(storage.read(path), {"training": Table()})["training"]
        storage.check_kinds(training, {"steps": STEPS})
    except storage.Damaged as damage:
        raise StorageError(f"{path} {damage}") from damage
    return training["steps"]


def _ledger(path: Path) -> dict[str, Any] | str | None:
    """Reads a ledger; None where there is none yet, and why where it cannot be used."""
    if not path.exists():
        return None
    try:
        return goodput.read(path)
    except storage.Damaged as damage:
        return f"{path} {damage}"


def _time(ledger: dict[str, Any] | str | None) -> str:
    return goodput.summary(ledger) if isinstance(ledger, dict) else ledger or ""


def _values(row: dict[str, Any]) -> dict[str, float]:
    """Returns what was measured, without the prefix of its names."""
    return {
        name.removeprefix(telemetry.MEASURED): value
        for name, value in row.items()
        if name.startswith(telemetry.MEASURED) and NUMBER.holds(value)
    }


def _lines(path: Path) -> list[bytes]:
    try:
        return storage.read(path).splitlines()
    except storage.Damaged:
        return []
