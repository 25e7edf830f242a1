"""The work of a sampling run and what of it is done on disk, so that a killed run goes on.

What is in a folder of samples:
    00000.mp4, 00001.mp4, ...   one for each sample, by its place in the list of work
    samples.json                the settings, and a row for each sample: how to make it again
    sheet.png                   a contact sheet of the first ones
While it is made, each process of the job keeps samples.jsonl (samples.1.jsonl, ...) instead of
samples.json: a line of settings, then a line for each sample whose file is whole.
"""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, DataError, StorageError
from snapvideo_jax.files import video

WHOLE, PART = "samples.json", "samples.jsonl"
PARTS = re.compile(r"samples(\.\d+)?\.jsonl")
ON_SHEET = 32  # samples; more make a picture that nobody can look at
VERSIONS = ("snapvideo_jax", "jax", "jaxlib", "flax")

Settings = dict[str, Any]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One video to make; `index` is its place in the whole list, and names its file."""

    index: int
    prompt: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Process:
    """Which share of the job's work this process makes.

    Processes that make a video together have the same share, and one of them `keeps` the files.
    """

    index: int
    count: int
    keeps: bool = True


ALONE = Process(0, 1)


class Format(NamedTuple):
    """How a video becomes a file (or, without a suffix, a folder), and how it is read back."""

    suffix: str
    write: Callable[[Path, video.Video, float], None]
    read: Callable[[Path], video.Video]


FORMATS = {
    "mp4": Format(".mp4", video.write_mp4, video.read_video),
    "gif": Format(".gif", video.write_gif, video.read_video),
    "png": Format("", video.write_frames, video.read_frames),
    "npz": Format(".npz", video.write_npz, video.read_npz),
}


def read_prompts(path: str | Path) -> list[str]:
    """Every line of a text file that is not blank; DataError if there is none."""
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; give a file with a prompt a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path} holds no prompt; give a file with a prompt a line")
    return prompts


def work_list(prompts: Sequence[str], seed: int, num: int) -> list[Sample]:
    """`num` samples of each prompt, with seeds seed .. seed + num - 1."""
    pairs = [(prompt, seed + i) for prompt in prompts for i in range(num)]
    return [Sample(index, *pair) for index, pair in enumerate(pairs)]


def share(work: Sequence[Sample], process: Process) -> Sequence[Sample]:
    """What one of the job's processes makes. Processes take turns, so shares differ by one."""
    return work[process.index :: process.count]


def versions() -> dict[str, str]:
    """Of the packages that decide the pixels."""
    return {name: _version(name) for name in VERSIONS}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout


class Results:
    """What is done in a folder, and what is missing.

    Raises ConfigError if the folder holds samples of other settings or of other work, naming the
    first field that differs.

    Attributes:
        done: indices of the samples whose row and file are there.
    """

    def __init__(
        self, folder: Path, settings: Settings, work: Sequence[Sample], process: Process = ALONE
    ):
        self.folder, self.work, self.process = folder, work, process
        # As files hold them: without tuples, and with an infinity as text, which JSON lacks.
        self.settings: Settings = json.loads(json.dumps(settings), parse_constant=str)
        self.format = FORMATS[settings["format"]]
        self._part = folder / (f"samples.{process.index}.jsonl" if process.index else PART)
        self._begun = False
        self.done = self._read()

    def missing(self) -> list[Sample]:
        """What this process has to make."""
        return [s for s in share(self.work, self.process) if s.index not in self.done]

    def add(self, sample: Sample, video: video.Video) -> None:
        """Writes the sample's file, then its row; StorageError if that fails."""
        # A still image has no rate, and a file must have one.
        self.format.write(self._path(sample.index), video, self.settings["frame_rate"] or 1)
        if not self._begun:
            self._begin()
        try:
            with self._part.open("ab") as part:
                part.write(_line(self._row(sample)))
        except OSError as error:
            raise StorageError(f"cannot write {self._part}: {error.strerror}") from error
        self.done.add(sample.index)

    def finish(self) -> None:
        """samples.json and the sheet, of what all processes made, in place of their parts.

        One process calls it, once all are through. StorageError if samples are missing.
        """
        self.done = self._read()
        if lacking := len(self.work) - len(self.done):
            raise StorageError(
                f"{self.folder} lacks {lacking} of {len(self.work)} samples; every process of the "
                "job must write into one folder: give one that they share, and run it again"
            )
        shown = self.work[:ON_SHEET]
        videos = [video.thumbnail(self.format.read(self._path(s.index))) for s in shown]
        sheet = video.contact_sheet(videos, [s.prompt for s in shown], scale=1)
        video.write_png(self.folder / "sheet.png", sheet)
        whole = self.settings | {"samples": [self._row(s) for s in self.work]}
        storage.write(self.folder / WHOLE, json.dumps(whole, indent=2).encode() + b"\n")
        for path in self._parts():
            path.unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}{self.format.suffix}"

    def _row(self, sample: Sample) -> Row:
        return {"file": self._path(sample.index).name, **vars(sample)}

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if PARTS.fullmatch(path.name))

    def _begin(self) -> None:
        """This process's part, whole: of all that is done, without what a kill cut in two."""
        rows = (self._row(sample) for sample in self.work if sample.index in self.done)
        storage.write(self._part, b"".join(map(_line, ({"settings": self.settings}, *rows))))
        self._begun = True

    def _read(self) -> set[int]:
        """Indices of the samples whose row and file are there."""
        indices: set[int] = set()
        for settings, rows in (_whole(self.folder / WHOLE), *map(_part, self._parts())):
            if rows:
                self._check(settings, rows)
            indices |= {row["index"] for row in rows}
        return {index for index in indices if self._path(index).exists()}

    def _check(self, settings: Settings, rows: Sequence[Row]) -> None:
        """ConfigError for the first field of the folder's that this run has otherwise."""
        pairs = [("", settings, self.settings)]
        for row in rows:
            index = row["index"]
            wanted = vars(self.work[index]) if 0 <= index < len(self.work) else {}
            made = {name: row.get(name) for name in vars(self.work[0])}
            pairs.append((f"samples[{index}].", made, wanted))
        for prefix, made, wanted in pairs:
            if field := _difference(made, wanted):
                raise ConfigError(
                    f"{self.folder} holds samples of other settings: {prefix}{field[0]} is "
                    f"{field[1]!r} there and {field[2]!r} here; give another --out, or the same "
                    "settings to go on"
                )


def complete(
    results: Results,
    make: Callable[[Sequence[Sample]], Iterable[video.Video]],
    batch_size: int,
    rounds: int,
    progress: Callable[[int, int], None],
) -> None:
    """Makes what this process lacks in `rounds` calls of `make`; `progress(videos done, of all)`.

    A job's processes compute together, so each calls `make` as often as the one that lacks most;
    what is made beyond its own work is thrown away.
    """
    missing = results.missing()
    for start in range(0, rounds * batch_size, batch_size):
        batch = missing[start : start + batch_size]
        videos = make(batch or results.work[:1])
        for sample, made in zip(batch, videos, strict=False):
            if results.process.keeps:
                results.add(sample, made)
        if batch:
            progress(start + len(batch), len(missing))


def _difference(made: dict, wanted: dict, prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first field that differs, as (its name, there, here); a field that lacks is None."""
    for name in {**wanted, **made}:
        there, here = made.get(name), wanted.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            if found := _difference(there, here, f"{prefix}{name}."):
                return found
        elif there != here:
            return f"{prefix}{name}", there, here
    return None


def _line(record: dict) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _whole(path: Path) -> tuple[Settings, list[Row]]:
    """Settings and rows of a samples.json; none where there is no such file."""
    if not path.exists():
        return {}, []
    try:
        settings = json.loads(_content(path))
        return settings, [{"index": i} | row for i, row in enumerate(settings.pop("samples"))]
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not of a run like this; give another --out") from error


def _part(path: Path) -> tuple[Settings, list[Row]]:
    """Settings and rows of a samples.jsonl; a line that a kill cut in two is left out."""
    records = []
    for line in _content(path).splitlines():
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    records = [record for record in records if isinstance(record, dict)]
    settings = [record["settings"] for record in records if "settings" in record]
    rows = [record for record in records if type(record.get("index")) is int]
    return (settings[0], rows) if settings else ({}, [])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
