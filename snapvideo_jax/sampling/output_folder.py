"""The work of a sampling run and how much of it a folder holds, so that a killed run goes on.

What is in a folder of samples:

    00000.mp4, 00001.mp4, ...   one for each sample, by its place in the list of work
    samples.json                the settings, and a record for each sample: how to make it again
    sheet.png                   a contact sheet of the first ones

While it is made, each process of the job keeps samples.jsonl (samples.1.jsonl, ...) instead of
samples.json: a line of settings, then a line for each sample whose file is whole. A record holds
the digest of its file, and a sample whose file has another one is made again.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, DataError, StorageError
from snapvideo_jax.fields import SEED
from snapvideo_jax.files import video
from snapvideo_jax.kinds import Several, Table, Text, Whole

WHOLE, PART = "samples.json", "samples.jsonl"
PARTS = re.compile(r"samples(\.\d+)?\.jsonl")
ON_SHEET = 32  # samples; more make a picture that nobody can look at
FRAMES_ON_SHEET = 4  # of each
VERSIONS = ("snapvideo_jax", "jax", "jaxlib", "flax")

Settings = dict[str, Any]
Record = dict[str, Any]
RECORD = {
    "index": Whole(0, 10_000_000),
    "prompt": Text(1_000_000),
    "seed": SEED,
    "digest": Text(64),  # of the file; "" in folders of earlier versions
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One video to make; `index` is its place in the whole list, and names its file."""

    index: int
    prompt: str
    seed: int


@dataclasses.dataclass(frozen=True)
class WorkShare:
    """The part of a job's work that one of `count` sets of processes makes.

    Processes that make a video together are one set, and one of them `writes` the files.
    """

    index: int
    count: int
    writes: bool = True

    def of(self, work: Sequence[Sample]) -> Sequence[Sample]:
        """Returns this share of `work`. Samples are dealt out, so shares differ by one at most."""
        return work[self.index :: self.count]


ALONE = WorkShare(0, 1)


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
    """Reads each line of a text file that is neither blank nor a "# comment".

    Raises DataError if there is none.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; give a file with a prompt a line") from error
    prompts = [line.strip() for line in lines]
    prompts = [line for line in prompts if line and not line.startswith("#")]
    if not prompts:
        raise DataError(f"{path} holds no prompt; give a file with a prompt a line")
    return prompts


def _title(sample: Sample, frames: int) -> str:
    """Returns what stands below a sample on the sheet."""
    title = f"{sample.prompt} (seed {sample.seed})"
    return title if frames <= FRAMES_ON_SHEET else f"{title}, {FRAMES_ON_SHEET} of {frames} frames"


def work_list(prompts: Sequence[str], seed: int, num: int) -> list[Sample]:
    """Lists `num` samples of each prompt, with seeds seed .. seed + num - 1."""
    pairs = [(prompt, seed + i) for prompt in prompts for i in range(num)]
    return [Sample(index, *pair) for index, pair in enumerate(pairs)]


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide the pixels."""
    return {name: _version(name) for name in VERSIONS}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout


class OutputFolder:
    """How much of the work a folder holds, and what is missing.

    Raises ConfigError if the folder holds samples of other settings or of other work, naming the
    first field that differs.

    Attributes:
        done: indices of the samples whose record is there, and whose file is the recorded one.
    """

    def __init__(
        self, folder: Path, settings: Settings, work: Sequence[Sample], share: WorkShare = ALONE
    ):
        self.folder, self.work, self.share = folder, work, share
        # As files hold them: without tuples, and with an infinity as text, which JSON lacks.
        self.settings: Settings = json.loads(json.dumps(settings), parse_constant=str)
        self.format = FORMATS[settings["format"]]
        self._part = folder / (f"samples.{share.index}.jsonl" if share.index else PART)
        self._part_is_open = False
        self._digests = self._read()

    @property
    def done(self) -> set[int]:
        """The indices of the samples whose record is there, and whose file is the recorded one."""
        return set(self._digests)

    def missing(self) -> list[Sample]:
        """Lists what this process has to make."""
        return [s for s in self.share.of(self.work) if s.index not in self.done]

    def batches(self, batch_size: int, rounds: int) -> Iterator[list[Sample]]:
        """Yields what this process lacks in `rounds` batches, [] where nothing is left.

        A job's processes compute together, so each asks for as many rounds as the one that lacks
        most.
        """
        missing = self.missing()
        for start in range(0, rounds * batch_size, batch_size):
            yield missing[start : start + batch_size]

    def add(self, sample: Sample, frames: video.Video) -> None:
        """Writes the sample's file, then its record; StorageError if that fails."""
        # A still image has no rate, and a file must have one.
        path = self._path(sample.index)
        self.format.write(path, frames, self.settings["frame_rate"] or 1)
        try:
            self._digests[sample.index] = storage.digest(path)
        except storage.Damaged as damage:
            raise StorageError(f"{path} {damage}") from damage
        if not self._part_is_open:
            self._open_part()
        storage.append(self._part, _line(self._record(sample)))

    def finish(self) -> None:
        """Writes samples.json and the sheet, of what all processes made, in place of their parts.

        One process calls it, once all are through. StorageError if samples are missing.
        """
        self._digests = self._read()
        if lacking := len(self.work) - len(self.done):
            raise StorageError(
                f"{self.folder} lacks {lacking} of {len(self.work)} samples; every process of the "
                "job must write into one folder: give one that they share, and run it again"
            )
        shown = self.work[:ON_SHEET]
        videos = [video.thumbnail(self.format.read(self._path(s.index))) for s in shown]
        titles = [_title(s, len(frames)) for s, frames in zip(shown, videos, strict=True)]
        sheet = video.contact_sheet(videos, titles, scale=1, frames=FRAMES_ON_SHEET)
        video.write_png(self.folder / "sheet.png", sheet)
        whole = self.settings | {"samples": [self._record(s) for s in self.work]}
        storage.write(self.folder / WHOLE, json.dumps(whole, indent=2).encode() + b"\n")
        for path in self._parts():
            path.unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}{self.format.suffix}"

    def _record(self, sample: Sample) -> Record:
        digest = self._digests[sample.index]
        return {"file": self._path(sample.index).name, **vars(sample), "digest": digest}

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if PARTS.fullmatch(path.name))

    def _open_part(self) -> None:
        """Writes this process's part anew: all that is done, without what a kill cut in two."""
        records = (self._record(sample) for sample in self.work if sample.index in self._digests)
        lines = map(_line, ({"settings": self.settings}, *records))
        storage.write(self._part, b"".join(lines))
        self._part_is_open = True

    def _read(self) -> dict[int, str]:
        """Returns index -> digest of the samples whose record is there, and the recorded file."""
        recorded: dict[int, str] = {}
        for settings, records in (_whole(self.folder / WHOLE), *map(_part, self._parts())):
            if records:
                self._check(settings, records)
            recorded |= {record["index"]: record["digest"] for record in records}
        whole = {}
        for index, expected in recorded.items():
            with contextlib.suppress(storage.Damaged):
                digest = storage.digest(self._path(index))
                if expected in ("", digest):
                    whole[index] = digest
        return whole

    def _check(self, settings: Settings, records: Sequence[Record]) -> None:
        """Raises ConfigError for the first field that the folder has otherwise than this run."""
        pairs = [("", settings, self.settings)]
        for record in records:
            index = record["index"]
            here = vars(self.work[index]) if 0 <= index < len(self.work) else {}
            there = {name: record.get(name) for name in vars(self.work[0])}
            pairs.append((f"samples[{index}].", there, here))
        for prefix, there, here in pairs:
            if field := _difference(there, here):
                raise ConfigError(
                    f"{self.folder} holds samples of other settings: {prefix}{field[0]} is "
                    f"{field[1]!r} there and {field[2]!r} here; give another --out, or the same "
                    "settings to go on"
                )


def _difference(there: dict, here: dict, prefix: str = "") -> tuple[str, Any, Any] | None:
    """Returns the first field that differs, as (name, there, here); a field that lacks is None."""
    for name in {**here, **there}:
        left, right = there.get(name), here.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            if difference := _difference(left, right, f"{prefix}{name}."):
                return difference
        elif left != right:
            return f"{prefix}{name}", left, right
    return None


def _line(record: dict) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _whole(path: Path) -> tuple[Settings, list[Record]]:
    """Reads settings and records of a samples.json; none where there is no such file."""
    if not path.exists():
        return {}, []
    try:
        settings = storage.parse_object(
            _content(path), {"samples": Several(Table(), 0, 10_000_000)}
        )
        records = enumerate(settings.pop("samples"))
        return settings, [_checked({"index": i} | record) for i, record in records]
    except storage.Damaged as damage:
        raise ConfigError(
            f"{path} is not of a run like this ({damage}); give another --out"
        ) from damage


def _part(path: Path) -> tuple[Settings, list[Record]]:
    """Reads settings and records of a samples.jsonl.

    Leaves out lines that are damaged, as the last one that a kill cut in two.
    """
    settings, records = [], []
    for line in _content(path).splitlines():
        with contextlib.suppress(storage.Damaged):
            entries = storage.parse_object(line, {})
            if "settings" in entries:
                storage.check_kinds(entries, {"settings": Table()})
                settings.append(entries["settings"])
            else:
                records.append(_checked(entries))
    return (settings[0], records) if settings else ({}, [])


def _checked(record: Record) -> Record:
    """Returns a record with a digest, which may be "". Raises Damaged for a value of no kind."""
    record = {"digest": ""} | record
    storage.check_kinds(record, RECORD)
    return record


def _content(path: Path) -> bytes:
    try:
        return storage.read(path)
    except storage.Damaged as damage:
        raise StorageError(f"{path} {damage}") from damage
