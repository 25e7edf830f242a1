"""Packs a folder of captioned files into a build that tensorflow-datasets reads, shard by shard.

Each shard is packed by a process of its own: a decoder that dies or hangs takes one file with it,
not the others. A shard that is whole is never packed again: the same call goes on where it ended.
pack.json holds what was packed, and how, with a checksum for each shard.
"""

import contextlib
import json
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax import storage
from snapvideo_jax.data import packed, tfds_build
from snapvideo_jax.data.choice import Aspect
from snapvideo_jax.data.pack_shard import Shard
from snapvideo_jax.data.packed import CAPTIONS, HEADER, PICTURES, VIDEOS
from snapvideo_jax.data.sources import FolderSource, texts
from snapvideo_jax.errors import ConfigError, DataError, StorageError

FORMAT, PARTS = 1, "parts"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Packing(NamedTuple):
    """How files are packed.

    Attributes:
      height: H, pixels.
      width: W, pixels.
      encoding: "jpeg", or without loss "png" (small) or "raw" (fast to read).
      quality: of JPEG, 1 to 100.
      shard_rows: files in a shard.
      aspect: as in `choice.Framing`.
      seconds: after which a decoder counts as hanging, a file.
    """

    height: int
    width: int
    encoding: str
    quality: int
    shard_rows: int
    aspect: Aspect = "crop"
    seconds: int = 600


# (shards, number of files in others, folder of `pack_shard`'s notes) -> packs the shards
PackShards = Callable[[Sequence[Shard], int, Path], None]


class Totals(NamedTuple):
    """What a build holds. loss: mean and least peak signal-to-noise ratio, dB; None if lossless."""

    videos: int
    pictures: int
    frames: int
    bytes: int
    source_bytes: int
    loss: tuple[float, float] | None
    unusable: list[tuple[str, str]]


def pack(
    source: FolderSource, folder: str | Path, packing: Packing, pack_shards: PackShards
) -> Totals:
    """Packs all files of `source` into `folder`.

    Args:
      source: the files.
      folder: of the build; made where there is none. A version such as 1.0.0 as its last part is
        the build's, and the part before that is its name.
      packing: size and encoding.
      pack_shards: packs the shards that are not there yet; `processes` does it on this machine.

    Raises:
      ConfigError: the folder holds a build of other files or of another packing, or another process
        writes into it.
      DataError: a worker failed at more than a file.
      StorageError: the folder cannot be written.
    """
    folder = storage.make_folder(folder)
    with contextlib.closing(storage.lock(folder)):
        header = _claim(source, folder, packing)
        if "shards" not in header:
            shards = list(_shards(source, folder, packing))
            _pack_missing(shards, folder, pack_shards)
            lines = "".join(json.dumps(captions) + "\n" for _, _, captions in _rows(source))
            storage.write(folder / CAPTIONS, lines.encode())
            header = _complete(header, shards, folder)
        return _totals(source, header)


def pack_share(
    source: FolderSource,
    folder: str | Path,
    packing: Packing,
    pack_shards: PackShards,
    *,
    host: int,
    hosts: int,
) -> None:
    """Packs the shards that are the share of one of several machines, which all call this.

    They mount the same files, and the same folder. A call of `pack` completes the build; it packs
    what is still missing.

    Args:
      source: the files.
      folder: of the build.
      packing: size and encoding.
      pack_shards: as of `pack`.
      host: number of this machine, in range(hosts).
      hosts: how many there are.

    Raises as `pack` does.
    """
    folder = storage.make_folder(folder)
    with contextlib.closing(storage.lock(folder, f"lock.{host}of{hosts}")):
        if "shards" not in _claim(source, folder, packing):
            share = list(_shards(source, folder, packing))[host::hosts]
            _pack_missing(share, folder, pack_shards)


def _pack_missing(shards: Sequence[Shard], folder: Path, pack_shards: PackShards) -> None:
    """Packs the shards that no call has completed yet."""
    parts = storage.make_folder(folder / PARTS)
    complete = {path.stem for path in parts.glob("*.json")}
    missing = {name: shard for shard in shards if (name := Path(shard.path).name) not in complete}
    for unfinished in folder.glob(".*.tmp"):  # of a call that was stopped
        if unfinished.name[1:].rsplit(".", 2)[0] in missing:
            unfinished.unlink(missing_ok=True)
    done = sum(len(shard.rows) for shard in shards if Path(shard.path).name in complete)
    pack_shards(list(missing.values()), done, parts)


def _rows(source: FolderSource) -> list[tuple[str, str, list[str]]]:
    videos = [("video", name, list(texts(captions))) for name, captions in source.videos]
    return videos + [("image", name, list(texts(captions))) for name, captions in source.images]


def _claim(source: FolderSource, folder: Path, packing: Packing) -> dict[str, Any]:
    """Returns the header of a build that is under way; writes it where there is none."""
    path = folder / HEADER
    facts = packing._asdict() | {"format": FORMAT, "source": source.fingerprint}
    del facts["seconds"]
    if not path.exists():
        storage.write(path, json.dumps(facts, indent=2).encode() + b"\n")
    try:
        header = json.loads(path.read_bytes())
        header.setdefault("aspect", "crop")  # of earlier versions
        differences = [name for name, value in facts.items() if header[name] != value]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{path}: is damaged; choose another folder") from error
    if differences:
        raise ConfigError(
            f"{folder} holds a build of other files or settings ({', '.join(differences)} differ); "
            "choose another --out"
        )
    return header


def build_name(folder: Path) -> str:
    """Returns the name of the build in a folder: NAME of .../NAME/1.0.0, else "clips"."""
    folder = folder.resolve()
    parent = re.sub(r"\W", "_", folder.parent.name.lower())
    return parent if _VERSION.fullmatch(folder.name) and parent[:1].isalpha() else "clips"


def _shards(source: FolderSource, folder: Path, packing: Packing) -> Iterator[Shard]:
    rows, name, size = _rows(source), build_name(folder), packing.shard_rows
    for split, kind in ((VIDEOS, "video"), (PICTURES, "image")):
        own = [row for row in rows if row[0] == kind]
        count = -(-len(own) // size)
        for k in range(count):
            yield Shard(
                path=str(tfds_build.shard_path(folder, name, split, k, count)),
                root=str(source.root.absolute()),
                rows=own[k * size : (k + 1) * size],
                members=_members(source, own[k * size : (k + 1) * size]),
                unusable={},
                height=packing.height,
                width=packing.width,
                aspect=packing.aspect,
                encoding=packing.encoding,
                quality=packing.quality,
                seconds=packing.seconds,
            )


def _members(
    source: FolderSource, rows: Sequence[tuple[str, str, list[str]]]
) -> dict[str, tuple[str, str, int, int]]:
    """Returns where rows lie in tar shards, by absolute paths."""
    if not source.members:
        return {}
    members = {name: source.members[name] for _, name, _ in rows}
    return {
        name: (str(Path(tar).absolute()), inner, offset, size)
        for name, (tar, inner, offset, size) in members.items()
    }


def pack_shard(shard: Shard, parts: Path) -> None:
    """Packs one shard in a process of its own, and notes in the folder `parts` that it is whole."""
    _pack_shard(shard, parts, _Processes(), report_row=lambda: None)


def _pack_shard(
    shard: Shard, parts: Path, processes: "_Processes", report_row: Callable[[], None]
) -> None:
    result = _pack_one(shard, processes, report_row)
    storage.write(parts / f"{Path(shard.path).name}.json", json.dumps(result).encode())


def processes(workers: int, report: Callable[[int, int], None]) -> PackShards:
    """Returns what packs shards by processes of this machine; the first error ends them all.

    Args:
      workers: processes at a time.
      report: called with files done and files in all.
    """
    return lambda shards, done, parts: _pack_all(shards, done, parts, workers, report)


def _pack_all(
    shards: Sequence[Shard],
    done: int,
    parts: Path,
    workers: int,
    report: Callable[[int, int], None],
) -> None:
    total = done + sum(len(shard.rows) for shard in shards)
    rows: queue.Queue[int | None] = queue.Queue()  # a number for each file, None for each shard
    processes = _Processes()

    def one(shard: Shard) -> None:
        try:
            _pack_shard(shard, parts, processes, lambda: rows.put(1))
        finally:
            rows.put(None)

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(one, shard) for shard in shards]
            for _ in shards:
                while (count := rows.get()) is not None:
                    done = min(done + count, total)
                    report(done, total)
                for future in futures:
                    if future.done():
                        future.result()
            for future in futures:
                future.result()
        except BaseException:
            processes.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Processes:
    """The worker processes that run, so that all can be ended."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), set[subprocess.Popen]()
        self._stopped = False

    @contextlib.contextmanager
    def start(self, errors: Any) -> Iterator[subprocess.Popen]:
        """Yields a new worker; raises DataError after `stop`."""
        command = [sys.executable, "-m", "snapvideo_jax.data.pack_shard"]
        pipe = subprocess.PIPE
        with self._lock:
            if self._stopped:
                raise DataError("packing was stopped")
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, text=True, start_new_session=True
            )
            self._running.add(process)
        try:
            with process:
                yield process
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Ends the workers, and lets no other start."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()


def _pack_one(
    shard: Shard, processes: _Processes, report_row: Callable[[], None]
) -> dict[str, Any]:
    """Returns the totals of a shard; files that end the worker count as unusable."""
    latest = -1  # row that was reported; a worker that starts again begins at 0
    while True:
        row, line = -1, {}
        with tempfile.TemporaryFile("w+") as errors:
            with processes.start(errors) as process:
                stdin, stdout = process.stdin, process.stdout
                assert stdin and stdout  # as start() has it
                with contextlib.suppress(BrokenPipeError):
                    stdin.write(shard.to_json())
                    stdin.close()
                for text in stdout:
                    line = json.loads(text)
                    row = line.get("row", row)
                    if row > latest:
                        report_row()
                        latest = row
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if "records" in line:
            return line
        if "error" in line:
            raise StorageError(f"cannot write {shard.path}: {line['error']}")
        if process.returncode >= 0 or row < 0 or str(row) in shard.unusable:
            raise DataError(f"packing {shard.path} failed: {said[-1] if said else 'no message'}")
        shard = replace(shard, unusable=shard.unusable | {str(row): _death(shard, process)})


def _death(shard: Shard, process: subprocess.Popen) -> str:
    number = -process.returncode
    if number == signal.SIGALRM:
        return f"its decoder took over {shard.seconds} s"
    return f"its decoder died of {signal.Signals(number).name}"


def _complete(header: dict[str, Any], shards: Sequence[Shard], folder: Path) -> dict[str, Any]:
    """Writes what makes a folder of shards a build, and the header with the facts of all shards."""
    parts = {}
    for shard in shards:
        name = Path(shard.path).name
        path = folder / PARTS / f"{name}.json"
        parts[name] = json.loads(path.read_bytes())
        if (
            not Path(shard.path).is_file()
            or Path(shard.path).stat().st_size != parts[name]["bytes"]
        ):
            path.unlink()
            raise StorageError(
                f"{shard.path} is missing or cut short; the same command packs it anew"
            )
    first = shards[0]
    lengths = {
        split: [
            (part["records"], part["record_bytes"])
            for name, part in parts.items()
            if f"-{split}." in name
        ]
        for split in (VIDEOS, PICTURES)
    }
    layout = packed.features(first.form)
    tfds_build.write_metadata(folder, build_name(folder), layout, lengths)
    header = header | {"shards": parts}
    storage.write(folder / HEADER, json.dumps(header, indent=1).encode() + b"\n")
    shutil.rmtree(folder / PARTS)
    return header


def _totals(source: FolderSource, header: dict[str, Any]) -> Totals:
    parts = list(header["shards"].values())
    total = lambda name: sum(part[name] for part in parts)
    worst = [part["loss_worst"] for part in parts if part["measured"]]
    names = {name for name, _ in (*source.videos, *source.images)}
    return Totals(
        videos=len(source.videos),
        pictures=len(source.images),
        frames=total("frames"),
        bytes=total("bytes"),
        source_bytes=sum(source.size(name) for name in names),
        loss=(total("loss_sum") / total("measured"), min(worst)) if worst else None,
        unusable=[(name, why) for part in parts for name, why in part["unusable"]],
    )
