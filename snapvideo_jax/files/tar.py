"""Members of tar files: where they lie, and how to read them without extracting anything.

Files are not trusted: only the headers are read, those that extend another one up to a megabyte,
and a member that is no plain file at a plain path refuses the whole tar. What is read knows ustar,
GNU and pax, as `tar` and WebDataset write them.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from snapvideo_jax.errors import DataError, reason

BLOCK = 512
MAX_EXTENSION = 2**20  # bytes of a header that extends the next one
_PLAIN = b"\x00", b"0", b"7"
_FOLDER, _LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL = b"5", b"L", b"K", b"x", b"g"
_KINDS = {
    b"1": "a link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a sparse file",
}  # fmt: skip


class Member(NamedTuple):
    """A file inside a tar file.

    Attributes:
      tar: path of the tar file.
      name: of the member.
      offset: of its first byte.
      size: bytes.
    """

    tar: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}/{self.name}"

    def open(self) -> io.BufferedReader:
        """Opens it as a file of its own."""
        return io.BufferedReader(_Window(self))


class _Window(io.RawIOBase):
    """The bytes of a member, without those around it."""

    def __init__(self, member: Member):
        self._file = open(member.tar, "rb", buffering=0)
        self._offset, self._size, self._position = member.offset, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = max(0, self._size - self._position)
        view = memoryview(buffer)[:left]
        count = os.preadv(self._file.fileno(), [view], self._offset + self._position) if left else 0
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a negative position")
        self._position = start + offset
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()


def members(path: str | Path) -> Iterator[Member]:
    """Yields the plain files of a tar file in their order; reads headers alone.

    Raises:
      DataError: the file is no tar file, is compressed or cut off, has no mark of its end, or holds
        a link, a device, a sparse file, or a path that is absolute or leads upwards.
    """
    try:
        with open(path, "rb") as file:
            yield from _members(file, str(path), os.fstat(file.fileno()).st_size)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error


def _members(file: BinaryIO, path: str, end: int) -> Iterator[Member]:
    """Yields members; raises ValueError with what is wrong with the file."""
    position, name, size = 0, None, None  # the latter two: what an extension says of the next one
    while position < end:
        file.seek(position)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):  # the end, or what pads it
            return
        kind, stored_name, stored_size = _parse(header, position)
        offset, length = position + BLOCK, stored_size
        if kind in _PLAIN and size is not None:
            length = size
        if length < 0 or offset + length > end:
            raise ValueError(f"is cut off in {name or stored_name!r}, or its size is wrong")
        if kind in (_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK):
            if length > MAX_EXTENSION:
                raise ValueError(f"the header at byte {position} is extended by {length} bytes")
            content = file.read(length)
            if kind == _PAX:
                name, size = _read_pax(content, position, name, size)
            elif kind == _LONG_NAME:
                name = _text(content.rstrip(b"\0"))
        else:
            whole = name or stored_name
            if kind in _PLAIN and not whole.endswith("/"):
                yield Member(path, _check_name(whole), offset, length)
            elif kind != _FOLDER and kind not in _PLAIN:
                what = _KINDS.get(kind, f"of kind {kind!r}")
                raise ValueError(f"{whole!r} is {what}; only plain files are read")
            name = size = None
        position = offset + -(-length // BLOCK) * BLOCK
    raise ValueError(
        "is cut off, as no end is marked; if it is whole, mark it: head -c 1024 /dev/zero >> FILE"
    )


def _parse(header: bytes, position: int) -> tuple[bytes, str, int]:
    """Returns kind, name and size of a header; ValueError where it is none."""
    if header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:6] == b"\xfd7zXZ\0":
        raise ValueError("is compressed, and has no random access; decompress it")
    checksum = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    stored = header[148:156].strip(b" \0")
    if len(header) < BLOCK or not stored.isdigit() or _number(stored) != checksum:
        raise ValueError(f"is no tar file, or damaged: no header at byte {position}")
    name = _text(header[:100].partition(b"\0")[0])
    prefix = _text(header[345:500].partition(b"\0")[0])
    if header[257:263] == b"ustar\0" and prefix:  # GNU has other things there
        name = f"{prefix}/{name}"
    return header[156:157], name, _number(header[124:136])


def _number(field: bytes) -> int:
    """Returns a number of a header: octal, or binary where its first bit is set."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits.isdigit():
        raise ValueError(f"a header holds {field!r} for a number")
    return int(digits, 8)


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the name {content[:80]!r} is not UTF-8") from error


def _read_pax(
    content: bytes, position: int, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Returns what records of "length key=value" say of the name and size of the next member."""
    while content:
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or not len(digits) + 2 < length <= len(content):
            raise ValueError(f"the header at byte {position} is damaged")
        if key.startswith(b"GNU.sparse"):
            raise ValueError("holds a sparse file; only plain files are read")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise ValueError(f"the header at byte {position} is damaged")
            size = int(value)
        content = content[length:]
    return name, size


def _check_name(name: str) -> str:
    """Returns the name without "./" before it; ValueError where it leads out of a folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or not parts:
        raise ValueError(f"{name!r} is not a path inside a folder")
    return "/".join(parts)
