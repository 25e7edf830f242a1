"""Whether two runs are the same bit for bit: checkpoints, metrics, and the data that they were fed.

Each function compares the run `actual` with the run `expected`, both folders, and returns what
differs: an empty list says that all of it is the same.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, StorageError, UserError, reason
from snapvideo_jax.fields import flatten
from snapvideo_jax.kinds import shown
from snapvideo_jax.training import checkpoint, fed_rows, restore, telemetry

# Fields that decide in which order numbers are added, or how fast parameters move; a run may
# change them (resume.MAY_CHANGE), and then goes on with other bits.
ARITHMETIC = (
    "mesh.", "training.steps", "training.accumulate", "model.remat", "model.attention",
    "model.fit.unroll",
)  # fmt: skip


class Difference(NamedTuple):
    """The step after which two runs are known to differ, and in what, in plain words."""

    step: int
    what: str


def runs(straight: Path, resumed: Path, steps: int) -> list[Difference]:
    """Compares all that two runs of twice `steps` left."""
    both = range(1, 2 * steps + 1)
    return [
        *rows(straight, resumed, both),
        *metrics(straight, resumed, both, all_there=True),
        *states(straight, resumed, steps),
        *states(straight, resumed, 2 * steps),
    ]


def replay(workdir: Path, folder: Path, step: int, later: int) -> list[Difference]:
    """Compares the steps after `step`, up to the checkpoint of `later`, with those of the run."""
    steps = range(step + 1, later + 1)
    return metrics(workdir, folder, steps, all_there=False) + digests(workdir, folder, later)


def states(expected: Path, actual: Path, step: int) -> list[Difference]:
    """Compares every leaf of two checkpoints: parameters, EMA, optimizer state, step.

    A part of each is in memory at a time. Raises StorageError if one cannot be read.
    """
    before, after = expected / "checkpoints", actual / "checkpoints"
    stored = [restore.step_meta(folder, step)["digests"] for folder in (before, after)]
    if differences := _other_leaves(step, *stored):
        return differences
    leaves = (restore.host_leaves(folder, step) for folder in (before, after))
    for (name, leaf), (_, other) in zip(*leaves, strict=True):
        if words := _difference(leaf, other):
            if stored[0][name] == stored[1][name]:
                words += "; they were equal when they were saved: the storage changed one"
            differences.append(Difference(step, f"{name} differs {words}"))
    return differences


def digests(expected: Path, actual: Path, step: int) -> list[Difference]:
    """Compares the digests that two checkpoints were saved with; reads none of their arrays.

    Raises StorageError if one cannot be read.
    """
    before, after = (
        restore.step_meta(folder / "checkpoints", step)["digests"] for folder in (expected, actual)
    )
    return _other_leaves(step, before, after) + [
        Difference(step, f"{name} differs: its digest is {after[name]:08x}, not {before[name]:08x}")
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]


def metrics(expected: Path, actual: Path, steps: range, all_there: bool) -> list[Difference]:
    """Compares the lines of metrics.jsonl byte by byte, evaluations left out.

    all_there: a step that has no line in one of them is a difference.
    """
    before, after = (_lines(folder / "metrics.jsonl") for folder in (expected, actual))
    differences = []
    for step in steps:
        a, b = before.get(step), after.get(step)
        if a is None or b is None:
            if all_there:
                differences.append(Difference(step, "metrics.jsonl lacks its line"))
        elif a != b:
            differences.append(Difference(step, f"metrics.jsonl has {_changes(a, b)}"))
    return differences


def rows(expected: Path, actual: Path, steps: range) -> list[Difference]:
    """Compares every row of data that the two runs were fed, also those of steps run twice."""
    before = {(step, file): digests for step, file, digests in fed_rows.read(expected)}
    differences, covered = [], set()
    for step, file, digests in fed_rows.read(actual):
        covered.add((step, file))
        if step in steps and digests != before.get((step, file)):
            differences.append(Difference(step, f"{file}: other rows of data"))
    missing = {place for place in before if place[0] in steps} - covered
    return differences + [Difference(step, f"{file} lacks it") for step, file in sorted(missing)]


def summary(differences: Sequence[Difference]) -> str:
    """Says in one line where and in what two runs differ first, and how many more there are."""
    step, what = min(differences, key=lambda difference: difference.step)
    more = f"; and in {len(differences) - 1:,} more places" if len(differences) > 1 else ""
    return f"step {step}: {what}{more}"


def check_newest(workdir: Path, step: int) -> list:
    """Raises UserError if a run that was to be killed after the checkpoint of `step` went further.

    Returns an empty list.
    """
    newest = checkpoint.step_folders(workdir / "checkpoints")[0]
    if newest != step:
        raise UserError(
            f"the kill came late, after checkpoint {newest} was saved; give more --steps"
        )
    return []


def next_step(workdir: Path, step: int) -> int:
    """Returns the stored step after `step`; raises ConfigError if one of the two is not there."""
    steps = sorted(checkpoint.step_folders(workdir / "checkpoints"))
    if step not in steps[:-1]:
        there = ", ".join(map(str, steps)) or "none"
        raise ConfigError(
            f"--replay={step} needs that checkpoint and a later one in {workdir / 'checkpoints'}; "
            f"there are: {there}"
        )
    return steps[steps.index(step) + 1]


def check_same_arithmetic(workdir: Path, step: int, config: Mapping[str, Any]) -> None:
    """Raises ConfigError where `config` would not compute the very bits of checkpoint `step`."""
    stored = flatten(restore.step_meta(workdir / "checkpoints", step)["config"])
    here = flatten(config)
    for name in (name for name in here if name.startswith(ARITHMETIC)):
        if stored.get(name) != here[name]:
            raise ConfigError(
                f"checkpoint {step} of {workdir} is of {name}={shown(stored.get(name))}, and this "
                f"is {shown(here[name])}: other bits are no fault of the hardware; set it back"
            )


def branch(workdir: Path, step: int, folder: Path) -> None:
    """Lays a checkpoint of `workdir` into `folder` so that a run resumes from it there.

    Its files are linked where the storage can, and nobody writes into them. Several processes may
    do this at the same time. Raises StorageError if it fails.
    """
    checkpoints = folder / "checkpoints"
    storage.make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        try:
            shutil.copytree(
                workdir / "checkpoints" / str(step),
                Path(unfinished) / "checkpoints" / str(step),
                copy_function=_link,
            )
            if (vocabulary := workdir / "vocabulary.model").exists():
                storage.write(folder / vocabulary.name, vocabulary.read_bytes())
            if not checkpoints.exists():
                (Path(unfinished) / "checkpoints").rename(checkpoints)
        except (OSError, shutil.Error) as error:
            if not checkpoints.exists():  # by another process
                raise StorageError(f"cannot copy checkpoint {step}: {reason(error)}") from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _other_leaves(step: int, before: Mapping, after: Mapping) -> list[Difference]:
    return [
        Difference(step, f"only one of the runs has {name}")
        for name in sorted(before.keys() ^ after.keys())
    ]


def _difference(a: Shaped[np.ndarray, "*a"], b: Shaped[np.ndarray, "*b"]) -> str:
    """Says how many numbers have other bits, and the first; "" if none."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"in shape or type: {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}"
    bits = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b)]
    other = (bits[0] != bits[1]).reshape(a.size, -1).any(-1)
    if not other.any():
        return ""
    first = int(other.argmax())
    place = [int(i) for i in np.unravel_index(first, a.shape)]
    values = " and ".join(str(x.reshape(-1)[first]) for x in (a, b))
    return f"in {int(other.sum()):,} of {a.size:,} numbers, first at {place}: {values}"


def _lines(path: Path) -> dict[int, bytes]:
    """Returns step -> line, of steps alone."""
    rows = telemetry.rows(path)
    return {row.entries["step"]: row.line for row in rows if not row.is_evaluation}


def _changes(before: bytes, after: bytes) -> str:
    """Says in which entries two lines of JSON differ."""
    a, b = json.loads(before), json.loads(after)
    names = [name for name in sorted(a.keys() | b.keys()) if _text(a, name) != _text(b, name)]
    return ", ".join(f"{n}={_text(a, n)} and {_text(b, n)}" for n in names) or "other bytes"


def _text(row: Mapping[str, Any], name: str) -> str:
    return shown(row[name]) if name in row else "nothing"
