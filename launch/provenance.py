"""Where the figures of a report are from: machine, versions, date and command."""

import datetime
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax

from snapvideo_jax.benchmark import machine


def facts(command: str, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Returns device, host, versions, date (of Greenwich) and the command line, as reports have it.

    command: the module that was run. devices: those that were timed, or compiled for.
    """
    return machine.describe(devices) | {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", command, *sys.argv[1:]]),
    }
