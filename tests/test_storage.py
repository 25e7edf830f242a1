"""Files are whole or not there, say if they are as they were written, and lie on this machine."""

import contextlib
import errno
import fcntl
import os

import pytest

from snapvideo_jax import storage
from snapvideo_jax.errors import StorageError
from snapvideo_jax.kinds import Real, Table, Whole
from snapvideo_jax.parallel import hosts
from tests.mutations import mutations


def test_sealed_entries_are_what_was_written_and_nothing_else():
    entries = storage.sealed({"b": (1, 2.5), "a": {"name": "é"}})
    assert entries["b"] == [1, 2.5] and storage.sealed(entries) == entries
    storage.check_seal(entries)
    for name, value in (("b", [1, 2.6]), ("a", {}), ("c", None), ("seal", "0" * 64)):
        with pytest.raises(storage.Damaged, match="its digest differs"):
            storage.check_seal(entries | {name: value})
    with pytest.raises(storage.Damaged):
        storage.check_seal({name: entries[name] for name in entries if name != "a"})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[3]", "is not an object"),
        (b'{"x": 1.5}', "lacks n"),
        (b'{"n": true, "x": 1.5}', "has n=True, which must be a whole number from 1 to 9"),
        (b'{"n": 3, "x": NaN}', "has x=nan, which must be a number from 0 to 2"),
        (b'{"n": 3, "x": "a\\nb"}', r"has x='a\nb', which"),
    ],
)
def test_json_of_another_shape_is_damaged_in_one_line(content, says):
    with pytest.raises(storage.Damaged) as error:
        storage.parse_object(content, {"n": Whole(1, 9), "x": Real(0.0, 2.0)})
    assert says in str(error.value) and "\n" not in str(error.value)


def test_mutated_json_is_an_object_of_the_kinds_or_damaged():
    content = b'{"step": 12, "digests": {"a/kernel": 4294967295, "b": 0}, "rate": 0.25}'
    kinds = {"step": Whole(0, 2**31), "digests": Table(Whole(0, 2**32 - 1)), "rate": Real(0.0, 1.0)}
    for damaged in mutations(content, 500):
        try:
            entries = storage.parse_object(damaged, kinds)
            assert all(kind.holds(entries[name]) for name, kind in kinds.items())
        except storage.Damaged as damage:
            assert "\n" not in str(damage) and len(str(damage)) < 400


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b", "gs:/bucket", "hdfs://h:80/x"])
def test_a_bucket_is_refused_and_no_folder_of_its_name_is_left(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for function in (storage.make_folder, storage.probe, storage.refuse_remote):
        with pytest.raises(StorageError, match="mount the bucket"):
            function(path)
    with pytest.raises(StorageError, match="mount the bucket"):
        storage.write(f"{path}/file", b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["runs/a:b", "a:/b", "/x:/y", "gs", ""])
def test_paths_of_this_machine_are_none(path):
    storage.refuse_remote(path)


def test_a_probe_leaves_nothing_and_names_what_it_cannot_write(tmp_path):
    storage.probe(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to .*file"):
        storage.probe(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="cannot write to /proc/run"):
        storage.probe("/proc/run")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match="cannot write to .*link"):
        storage.probe(tmp_path / "link" / "run")


@pytest.mark.parametrize(
    "claim", [storage.lock, lambda folder: hosts.claim_folder(folder).__enter__()]
)
def test_storage_that_cannot_lock_is_not_in_use(tmp_path, monkeypatch, claim):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="No locks available"):
        claim(tmp_path)


def test_a_digest_is_that_of_the_bytes_and_of_the_names_in_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(b"x")
    digests = {storage.digest(tmp_path / "a"), storage.digest(tmp_path / "a" / "1")}
    (tmp_path / "a" / "1").write_bytes(b"y")
    digests |= {storage.digest(tmp_path / "a"), storage.digest(tmp_path / "a" / "1")}
    os.rename(tmp_path / "a" / "1", tmp_path / "a" / "2")
    assert len(digests | {storage.digest(tmp_path / "a")}) == 5
    with pytest.raises(storage.Damaged, match="cannot be read: No such file"):
        storage.digest(tmp_path / "a" / "1")


def fill(folder, leave=0):
    """Writes a file that leaves so many bytes of the disk; delete it to have them back."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(ballast, ballast.stat().st_size - leave)
    return ballast


@pytest.mark.parametrize("size", [8 << 10, 20 << 10])
def test_on_a_full_disk_a_file_is_whole_or_as_it_was(disk, size):
    folder = disk(size)
    storage.write(folder / "a", b"old")
    fill(folder)
    for path in ("a", "b"):
        with pytest.raises(StorageError, match="cannot write .*: No space left on device"):
            storage.write(folder / path, bytes(4 * size))
    with pytest.raises(StorageError, match="cannot write to .*: No space left on device"):
        storage.probe(folder)
    assert (folder / "a").read_bytes() == b"old" and not list(folder.glob(".*"))


def test_what_is_added_to_a_file_is_there_whole_or_not_at_all(disk):
    folder = disk(20 << 10)
    storage.append(folder / "a", b"first\n")
    ballast = fill(folder, leave=4096)
    for _ in range(2):  # the first page of it fits
        with pytest.raises(StorageError, match="cannot write .*a: No space left on device"):
            storage.append(folder / "a", bytes(10_000))
        assert (folder / "a").read_bytes() == b"first\n"
    ballast.unlink()
    storage.append(folder / "a", b"second\n")
    assert (folder / "a").read_bytes() == b"first\nsecond\n"
