"""Many videos measured batch by batch; a job that was stopped goes on after its last whole batch.

Videos, sampled or read, are measured as soon as they are there, and only what was measured is
stored: one file a batch and process. Batches are always the same videos, so a job that was stopped
ends with the bits of one that was not. The processes of a job share one folder.
"""

import functools
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.evaluation.choices import unlike
from snapvideo_jax.parallel import hosts
from snapvideo_jax.sampling.generate import Progress
from snapvideo_jax.sampling.output_folder import WorkShare

JOB = "job.json"

Measured = dict[str, Shaped[np.ndarray, "_ ..."]]  # name -> a row for each video
Measure = Callable[[Sequence[int]], Measured]  # numbers of videos -> what was measured of them


class Job(NamedTuple):
    """Videos 0 .. total - 1, of which each process measures its share, `batch_size` at a time."""

    folder: Path
    total: int
    batch_size: int
    share: WorkShare

    @property
    def rounds(self) -> int:
        """How many batches the process with the largest share has."""
        return -(-self.total // (self.batch_size * self.share.count))

    def rows(self, number: int) -> range:
        """Returns which videos this process has in batch `number`; none at the end of a share."""
        own = range(self.total)[self.share.index :: self.share.count]
        return own[number * self.batch_size : (number + 1) * self.batch_size]

    def part(self, number: int) -> Path:
        """Returns where this process writes what it measured of batch `number`."""
        return self.folder / f"{number:05d}.{self.share.index}.npz"


def claim(job: Job, facts: dict[str, Any]) -> None:
    """Makes the folder, and writes `facts` (JSON), which decide what is measured.

    Raises ConfigError, one line, where another job's parts are in it.
    """
    facts = facts | {"batch_size": job.batch_size, "shares": job.share.count}
    path = storage.make_folder(job.folder) / JOB

    def check() -> None:
        if not hosts.is_first():
            return
        try:
            differences = unlike(json.loads(path.read_bytes()), facts) if path.exists() else []
        except (OSError, ValueError, AttributeError) as error:
            raise StorageError(f"{path}: is damaged; delete {job.folder}") from error
        if differences:
            raise ConfigError(
                f"{job.folder} holds a part of another evaluation ({', '.join(differences[:3])}); "
                "finish that one with its own flags, or delete the folder"
            )
        storage.write(path, json.dumps(facts, indent=2).encode() + b"\n")

    hosts.raise_on_all(check)


def run(job: Job, measure: Measure, progress: Progress) -> Measured:
    """Measures every video that is not measured yet; returns the rows of all, on the first process.

    All processes compute every batch together; one whose share is through repeats its first video.

    Args:
        job: which videos, and where to write.
        measure: called with the numbers of a batch of videos.
        progress: called with the videos done by this process, of those that it lacked.
    """
    storage.make_folder(job.folder)
    lacking = [number for number in range(job.rounds) if not _is_whole(job.part(number))]
    lacking = sorted(set().union(*hosts.gather(lacking)))
    total, done = sum(len(job.rows(number)) for number in lacking), 0
    for number in lacking:
        rows = job.rows(number)
        measured = hosts.raise_on_all(functools.partial(measure, rows or range(1)))
        if job.share.writes:
            values = {name: value[: len(rows)] for name, value in measured.items()}
            _write(job.part(number), values | {"row": np.array(rows, np.int64)})
        if rows:
            done += len(rows)
            progress(done, total)
    hosts.gather(None)  # all parts are written
    return hosts.raise_on_all(lambda: _read_all(job) if hosts.is_first() else {})


def _write(path: Path, arrays: Measured) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    storage.write(path, content.getvalue())


def _is_whole(path: Path) -> bool:
    """Returns whether a part is there and can be read to its end."""
    return path.exists() and _read(path) is not None


def _read(path: Path) -> Measured | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _read_all(job: Job) -> Measured:
    paths = sorted(path for path in job.folder.glob("*.npz"))
    parts = [part for part in map(_read, paths) if part is not None]
    rows = np.concatenate([np.zeros(0, np.int64), *(part.pop("row") for part in parts)])
    order = np.argsort(rows)
    if not np.array_equal(rows[order], np.arange(job.total)):
        raise StorageError(
            f"{job.folder} holds {len(rows)} of {job.total} videos; every process of the job must "
            "write into one folder: give --out and --cache that they share, and run it again"
        )
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
