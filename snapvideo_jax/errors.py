"""The errors that end a command, each with the exit code of the process that meets it.

The message is one line: what is wrong, where, and what to do. `launch` prints it and exits, without
a traceback.
"""


def reason(error: Exception) -> str:
    """Returns what a library's error says, on one line; of the system's, without the number."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


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
