"""Storage that is out of reach, as after a stale handle of NFS: one line, and exit code 5."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tests.launch.test_entry import ENVIRONMENT, ROOT

# Each error ends a process of its own by `entry.run`; what it says, and its exit code.
RAISING = """
import errno, json, os, sys
from launch import entry
from snapvideo_jax.errors import ConfigError, DataError

def raised(number, path):
    raise OSError(number, os.strerror(number), *path)

def caused(kind):
    try:
        raised(errno.ESTALE, ["clips/a.mp4"])
    except OSError as error:
        raise kind("clips cannot be listed") from error

def end(case):
    if not os.fork():
        sys.argv[1:] = []
        entry.run(lambda: raised(*case) if len(case) == 2 else caused(globals()[case[0]]))
    print(os.waitstatus_to_exitcode(os.wait()[1]), file=sys.stderr, flush=True)

for case in json.loads(sys.argv[1]):
    end(case)
"""
NUMBERS = errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ENOSPC, errno.EROFS, errno.EACCES


@pytest.fixture(scope="module")
def ends():
    """case -> (what was said, exit code)."""
    cases = [(n, path) for n in NUMBERS for path in ((), ("runs/a",))]
    cases += [("DataError",), ("ConfigError",)]
    command = [sys.executable, "-c", RAISING, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(cases), done.stderr
    return dict(zip(cases, zip(lines[::2], map(int, lines[1::2]), strict=True), strict=True))


@pytest.mark.parametrize("number", NUMBERS)
def test_what_the_system_says_of_a_file_is_one_line_with_the_code_of_storage(ends, number):
    line, code = ends[number, ("runs/a",)]
    assert code == 5
    assert line.startswith(f"error: cannot read or write runs/a: {os.strerror(number)}")
    line, code = ends[number, ()]  # an open file is named by the place that reads it
    assert code == 5 and os.strerror(number) in line and "a file (<string>:7)" in line
    assert ("is mounted" in line) == (number in (errno.ESTALE, errno.ENOTCONN))


def test_data_out_of_reach_are_no_bad_data_and_flags_no_storage(ends):
    line, code = ends[("DataError",)]
    assert code == 5 and line.startswith("error: clips cannot be listed; see that the storage is")
    assert ends[("ConfigError",)] == ("error: clips cannot be listed", 2)
