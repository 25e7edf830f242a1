"""The errors that end a command, each with the exit code of the process that meets it.

The message is one line: what is wrong, where, and what to do. `launch` prints it and exits, without
a traceback.
"""

import errno
import os
import re

# What a file system across a network says when the way to a file is gone: nothing of the file. EIO
# is none of them: a disk says it of a bad sector, and FFmpeg of a file that is cut off.
_OUT_OF_REACH = {
    getattr(errno, name)
    for name in (
        "ESTALE ENOTCONN EREMOTEIO EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ESHUTDOWN ENOLINK "
        "ETIMEDOUT ECONNREFUSED ECONNRESET ECONNABORTED ENODEV ENXIO"
    ).split()
    if hasattr(errno, name)  # each system has some of them
}
# How libraries that open files by themselves pass them on, as text.
_STALE = re.compile("|".join(map(os.strerror, (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN))))
REMOUNT = "see that the storage is mounted; then the same command goes on"


def reason(error: Exception) -> str:
    """Returns what a library's error says, on one line; of the system's, without the number."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def storage_is_lost(error: BaseException | None) -> bool:
    """Returns whether an error, or one that led to it, says that a file is out of reach.

    As a stale handle of NFS does. The file is then neither missing nor damaged.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_REACH or _STALE.search(str(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


class UserError(Exception):
    """Base of the errors that end a command with one line and `exit_code`."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A flag or config field that cannot be used: exit code 2."""

    exit_code = 2


class DataError(UserError):
    """Input data or weights that are missing or unusable: exit code 3."""

    exit_code = 3


class Stalled(DataError):
    """Input that does not come, from a thread that cannot be ended: the process has to exit."""


class DivergedError(UserError):
    """Loss or gradients that stay non-finite: exit code 4."""

    exit_code = 4


class StorageError(UserError):
    """Checkpoints or outputs that cannot be read or written: exit code 5."""

    exit_code = 5


class Preempted(UserError):
    """A signal ended the run after its state was saved: exit code 143."""

    exit_code = 143


class Stopped(UserError):
    """Ctrl-C ended the run after its state was saved: exit code 130."""

    exit_code = 130


def unreadable(message: str, error: BaseException) -> DataError | StorageError:
    """Returns the error of data that could not be read: `message`, which `error` led to."""
    if storage_is_lost(error):
        return StorageError(f"{message}; {REMOUNT}")
    return DataError(message)
