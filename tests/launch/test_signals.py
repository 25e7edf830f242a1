"""Ctrl-C and SIGTERM: a line within a second and an exit code, whatever the main thread does."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import signals
from snapvideo_jax.parallel import hosts
from tests.launch.test_entry import ENVIRONMENT, ROOT

SOON = 5.0  # seconds, on a machine with other work; alone it takes hundredths
SLOW = 10.0  # seconds, for the end of a process there

AWAY = """
import ctypes
from launch import entry

def main():
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    c.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    c.pthread_mutex_lock(mutex)  # waits for ever, and no signal wakes it up

entry.run(main)
"""

# A run whose steps are under way, and which saves for so many seconds when a signal ends it.
RUNNING = """
import sys
import time
from launch import entry
from snapvideo_jax.errors import Stopped
from snapvideo_jax.parallel import hosts

def main():
    with hosts.Signals() as signals:
        signals.stop()
        print("ready", flush=True)
        while not signals.stop():
            time.sleep(0.01)
        print("saving", flush=True)
        time.sleep(seconds)
    raise Stopped("stopped: saved step 3")

seconds = int(sys.argv.pop())
entry.run(main)
"""

TALKING = """
from launch import entry, screen

def main():
    while True:
        screen.say("a line")

entry.run(main)
"""


@pytest.fixture(autouse=True)
def hear_interrupts():
    """Undoes what a shell does to commands in the background: they and theirs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # not inherited, ignoring is
    yield
    signal.signal(signal.SIGINT, before)


def send(number, command, line, seconds=0.0):
    """(exit code, stderr, seconds to its first line and to the end) after a signal.

    The signal is sent so many `seconds` after a line of stdout that matches `line`.
    """
    pipe = subprocess.PIPE
    options = dict(cwd=ROOT, env=ENVIRONMENT, text=True, stdout=pipe, stderr=pipe)
    with subprocess.Popen([sys.executable, *command], **options) as process:
        limit = threading.Timer(300, process.kill)
        limit.start()
        if not any(re.search(line, said) for said in process.stdout):
            limit.cancel()
            pytest.fail(process.stderr.read())
        time.sleep(seconds)
        process.send_signal(number)
        start = time.monotonic()
        first = process.stderr.readline()
        heard = time.monotonic() - start
        rest = process.stderr.read()
        code = process.wait()
        limit.cancel()
        return code, first + rest, heard, time.monotonic() - start


@pytest.mark.parametrize(
    ("number", "word", "exit_code"),
    [(signal.SIGINT, "stopped\n", 130), (signal.SIGTERM, "terminated\n", 143)],
)
def test_a_thread_that_is_away_in_c_hears_no_signal_but_the_command_ends(number, word, exit_code):
    code, stderr, heard, ended = send(number, ["-c", AWAY], "ready")
    assert (code, stderr) == (exit_code, word)
    assert heard < SOON and ended < signals.GRACE + SLOW


def test_training_that_compiles_ends_at_once(tmp_path):
    deep = "--config.model.fit.blocks=12", "--config.model.fit.unroll=12"
    command = ["-m", "launch.train", "--config=tests/tiny.py", f"--workdir={tmp_path}", *deep]
    code, stderr, heard, ended = send(signal.SIGINT, command, "compiling", seconds=2)
    assert (code, stderr) == (130, "stopped\n")
    assert heard < SOON and ended < signals.GRACE + SLOW


def test_a_run_whose_steps_are_under_way_says_at_once_that_it_will_stop():
    code, stderr, heard, _ = send(signal.SIGINT, ["-c", RUNNING, "3"], "ready")
    assert heard < SOON
    assert (code, stderr) == (130, f"{signals.SAVING[signal.SIGINT]}\nstopped: saved step 3\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_command_at_once(number):
    pipe = subprocess.PIPE
    options = dict(cwd=ROOT, env=ENVIRONMENT, text=True, stdout=pipe, stderr=pipe)
    with subprocess.Popen([sys.executable, "-c", RUNNING, "100"], **options) as process:
        for line in ("ready\n", "saving\n"):
            assert process.stdout.readline() == line
            process.send_signal(number)
        assert process.wait(SLOW) == 128 + number


def test_a_command_whose_reader_leaves_ends_as_by_sigterm():
    command = [sys.executable, "-c", TALKING]
    pipe = subprocess.PIPE
    options = dict(cwd=ROOT, env=ENVIRONMENT, text=True, stdout=pipe, stderr=pipe)
    with subprocess.Popen(command, **options) as process:
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == "terminated\n"
        assert process.wait(60) == 143


def test_imports_end_with_the_same_word(tmp_path):
    (tmp_path / "slow.py").write_text("import launch; print('ready', flush=True); input()")
    command = ["-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import slow"]
    pipe = subprocess.PIPE
    options = dict(cwd=ROOT, env=ENVIRONMENT, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    with subprocess.Popen([sys.executable, *command], **options) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130 and process.stderr.read() == "stopped\n"


def test_a_run_takes_signals_over_when_its_first_step_is_under_way():
    outside = signal.getsignal(signal.SIGINT)
    with hosts.Signals() as received:
        assert signal.getsignal(signal.SIGINT) is outside
        assert received.stop() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert received.stop() == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is outside
