"""Tar files: every form that is written is read, and what could do harm is refused."""

import io
import random
import tarfile
import tracemalloc

import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.files import tar

LONG = "/".join(["a folder with a rather long name"] * 8) + "/clip.mp4"
NAMES = ["a.mp4", "x/b.mp4", "./c.mp4", "ä/猫.mp4", LONG]


def write(path, items, form=tarfile.PAX_FORMAT, **options):
    """items: (name, content) or TarInfo."""
    with tarfile.open(path, "w", format=form, **options) as file:
        for item in items:
            if isinstance(item, tarfile.TarInfo):
                file.addfile(item, io.BytesIO(bytes(item.size)) if item.isreg() else None)
                continue
            name, content = item
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_python_reads(tmp_path, form):
    rng = random.Random(0)
    names = NAMES[: 4 if form == tarfile.USTAR_FORMAT else 5]
    items = [(name, rng.randbytes(rng.choice([0, 1, 511, 512, 513, 9000]))) for name in names]
    path = write(tmp_path / "a.tar", [special("x", tarfile.DIRTYPE), *items], form)
    members = list(tar.members(path))
    assert [m.name for m in members] == [name.removeprefix("./") for name in names]
    for member, (_, content) in zip(members, items, strict=True):
        with member.open() as file:
            assert file.read() == content and file.read(1) == b""
            assert file.seek(-min(5, len(content)), io.SEEK_END) == max(0, len(content) - 5)
            assert file.read() == content[-5:]
            assert file.seek(3) == 3 and file.read(4) == content[3:7]
    with tarfile.open(path) as file:
        assert [m.offset for m in members] == [i.offset_data for i in file if i.isreg()]


def test_sizes_beyond_octal_are_read(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a.mp4")
    info.size = 9 * 2**30  # octal digits end at 8 GiB
    header = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(512 + info.size + 1024)  # a hole: takes no space
    assert list(tar.members(path)) == [tar.Member(str(path), "a.mp4", 512, info.size)]


REFUSED = {
    "is a symbolic link": special("a", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "is a link": special("a", tarfile.LNKTYPE, linkname="b"),
    "is a device": special("a", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "is a pipe": special("a", tarfile.FIFOTYPE),
    "is a sparse file": special("a", tarfile.GNUTYPE_SPARSE),
    "'../a.mp4' is not a path inside": special("../a.mp4", tarfile.REGTYPE),
    "'x/../../a.mp4' is not a path": special("x/../../a.mp4", tarfile.REGTYPE),
    "'/etc/passwd' is not a path": special("/etc/passwd", tarfile.REGTYPE),
    "holds a sparse file": special("a", tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1"}),
    "is extended by 2000": special("a", tarfile.REGTYPE, pax_headers={"comment": "x" * 2_000_000}),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_could_do_harm_refuses_the_file(tmp_path, line):
    path = write(tmp_path / "a.tar", [("first.mp4", b"1"), REFUSED[line]])
    with pytest.raises(DataError, match=line):
        list(tar.members(path))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_files_are_refused_by_name(tmp_path, mode):
    with tarfile.open(tmp_path / "a.tar", mode) as file:
        file.addfile(tarfile.TarInfo("a"))
    with pytest.raises(DataError, match=r"a\.tar: is compressed.*decompress it"):
        list(tar.members(tmp_path / "a.tar"))


def test_files_that_are_cut_off_or_none_at_all_are_one_line(tmp_path):
    path = write(tmp_path / "a.tar", [("a.mp4", bytes(9000)), ("b.mp4", bytes(9000))])
    whole = path.read_bytes()
    cuts = {
        9000: "is cut off in 'a.mp4'",
        9728: "is cut off, as no end is marked",  # between two members
        9900: "no header at byte 9728",
        0: "is cut off, as no end is marked",
    }
    for length, line in cuts.items():
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=line):
            list(tar.members(path))
    path.write_bytes(b"no tar file" * 99)
    with pytest.raises(DataError, match="is no tar file, or damaged: no header at byte 0"):
        list(tar.members(path))
    with pytest.raises(DataError, match=r"none\.tar: cannot be read: No such file"):
        list(tar.members(tmp_path / "none.tar"))


def test_damage_is_an_error_or_the_same_members_and_takes_no_memory(tmp_path):
    items = [(name, bytes([k]) * 700) for k, name in enumerate(NAMES)]
    path, rng = write(tmp_path / "a.tar", items), random.Random(1)
    whole, refused = path.read_bytes(), 0
    tracemalloc.start()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(whole))] = rng.choice([0, 0x30, 0x37, 0x80, 0xFF])
        path.write_bytes(damaged)
        try:
            for member in tar.members(path):
                assert 0 <= member.offset <= member.offset + member.size <= len(whole)
                assert ".." not in member.name.split("/") and not member.name.startswith("/")
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 60 and tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
