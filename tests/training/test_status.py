"""launch.train --status says what a run has come to, from its files, and disturbs nothing."""

import json
import os
import subprocess
import sys

import pytest

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.parallel import hosts
from snapvideo_jax.training import status
from tests.mutations import mutations

LEDGER = {
    "starts": 2, "step": 50, "steps": 60, "lost_steps": 10,
    "seconds": {
        "start": 5.0, "compile": 15.0, "data": 3.0, "checkpoint": 2.0, "pictures": 5.0,
        "training": 110.0,
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run that was ended at step 50 of 100, with checkpoints and one evaluation."""
    (tmp_path / "config.json").write_text(json.dumps({"training": {"steps": 100}}))
    (tmp_path / "goodput.json").write_text(json.dumps(LEDGER))
    rows = [{"step": step, "loss": 10.0 / step} for step in range(1, 51)]
    rows.insert(40, {"step": 40, "evaluation/all_right": 0.75, "evaluation/flicker": 0.0125})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (20, 40):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "lock").write_text(f"{hosts.process_name(123)}\n")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "000040.png").touch()
    (tmp_path / "bad_records.jsonl").write_text('{"path": "a.mp4"}\n{"path": "b.mp4"}\n')
    return tmp_path


def lines(folder):
    """What is shown of a run: name of the line -> its text."""
    rows = status.screen(status.read(folder)).splitlines()
    return {row[:9].strip(): row[9:] for row in rows}


def test_a_dead_run_says_how_far_it_came_and_what_goes_on(run):
    shown = lines(run)
    assert shown[""].endswith("ago; the same command goes on from step 40")
    # 60 steps took 120 s beside starting and compiling; 50 are left.
    assert shown["step"] == f"{'█' * 30}{'░' * 30} 50 of 100, 1m40s left"
    assert shown["loss"].startswith("█") and shown["loss"].endswith("▁           10.0 to 0.200")
    assert shown["saved"] == "20, 40"
    assert shown["time"].startswith("goodput 65 % of 2m20s: starting 4 %, ")
    assert shown["measured"] == "all_right 0.750, flicker 0.0125 (step 40)"
    assert shown["samples"] == str(run / "samples" / "000040.png")
    assert shown["data"] == f"2 files could not be used: {run / 'bad_records.jsonl'}"


def test_a_run_that_holds_its_folder_is_running(run):
    with hosts.claim_folder(run):
        assert f"{run} is running: {hosts.process_name(os.getpid())}; it wrote " in lines(run)[""]
    assert "has ended" in lines(run)[""]


def test_a_run_is_done_when_its_last_step_is_saved(run):
    (run / "checkpoints" / "100").mkdir()
    assert lines(run)[""] == f"{run} is done"
    assert lines(run)["step"] == f"{'█' * 60} 100 of 100"


def test_a_run_of_another_host_is_not_called_dead(run):
    (run / "lock").write_text("process 9 on elsewhere\n")
    assert f"{run} was begun by process 9 on elsewhere, which is not seen" in lines(run)[""]


def test_a_run_before_its_first_step_has_little_to_say(run):
    for name in ("goodput.json", "metrics.jsonl", "bad_records.jsonl", "lock"):
        (run / name).unlink()
    for step in (20, 40):
        (run / "checkpoints" / str(step)).rmdir()
    (run / "samples" / "000040.png").unlink()
    assert lines(run) == {
        "": f"{run} has ended; the same command goes on from the beginning",
        "step": f"{'░' * 60} 0 of 100",
        "saved": "no checkpoint yet",
    }


def test_each_line_of_metrics_is_parsed_once(run, monkeypatch):
    parsed, parse = [], storage.parse_object
    monkeypatch.setattr(
        storage, "parse_object", lambda line, kinds: parsed.append(line) or parse(line, kinds)
    )
    status.read(run)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert [line for line in parsed if line in lines] == lines


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run: there is no config\.json in it"):
        status.read(tmp_path)


def test_damaged_files_of_a_run_are_one_line(run):
    for name in ("goodput.json", "metrics.jsonl", "config.json", "lock", "bad_records.jsonl"):
        whole = (run / name).read_bytes()
        for damaged in mutations(whole, 20):
            (run / name).write_bytes(damaged)
            try:
                assert len(lines(run)) >= 4
            except StorageError as error:
                assert name in str(error) and "\n" not in str(error)
        (run / name).write_bytes(whole)


def test_the_command_touches_no_device_and_no_file(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    command = [sys.executable, "-m", "launch.train", f"--status={run}"]
    environment = os.environ | {"JAX_PLATFORMS": "none_such"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[1:] == status.screen(status.read(run)).splitlines()[1:]
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
