"""launch.verify_resume: kill -9 and resume change no bit, and a bit that changed is found."""

import shutil
import signal
import subprocess
import sys

import jax
import pytest

from launch import trainer
from snapvideo_jax.errors import ConfigError, DataError, UserError
from snapvideo_jax.training import checkpoint
from tests import forged, in_process
from tests.launch.test_hosts import ENVIRONMENT, ROOT, run_job

TINY = "--config=tests/tiny.py"
KERNEL = "params/network/head/kernel"


@pytest.fixture(autouse=True)
def same_platform():
    """The command takes the CPU for itself; this process has it already."""
    before = jax.config.values["jax_platforms"]
    yield
    jax.config.update("jax_platforms", before)


def verify(*flags, devices=1):
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(
        [sys.executable, "-m", "launch.verify_resume", TINY, *map(str, flags)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_flags_of_its_own_are_not_passed_on():
    argv = ["--config=c", "--steps=4", "--workdir", "w", "--config.seed", "1", "-replay=3"]
    assert trainer.passed_on(argv, ("steps", "workdir", "replay")) == [
        "--config=c", "--config.seed", "1",
    ]  # fmt: skip


def test_what_cannot_be_verified_is_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match="--steps=5 trains 10 .* training.steps=8; give --steps=4"
    ):
        in_process.launch("verify_resume", TINY, "--steps=5")
    (tmp_path / "straight" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds an earlier verification"):
        in_process.launch("verify_resume", TINY, "--steps=2", f"--workdir={tmp_path}")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--replay=3 needs that checkpoint and a later one"):
        in_process.launch("verify_resume", TINY, "--replay=3", f"--workdir={tmp_path}")
    with pytest.raises(ConfigError, match="--steps does nothing here"):
        in_process.launch("verify_resume", TINY, "--replay=3", "--steps=3", "--workdir=w")


def test_the_first_process_compares_and_the_others_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "OTHERS", 0)
    path = tmp_path / "verdict.json"
    with pytest.raises(UserError, match="waited 0 s for .*verdict.json"):
        trainer.follow(False, path, list)
    assert trainer.follow(True, path, lambda: [(4, "x")]) == [[4, "x"]]
    assert trainer.follow(False, path, list) == [[4, "x"]]


@pytest.mark.faults
def test_a_child_that_fails_is_one_line_with_its_exit_code(tmp_path):
    flags = TINY, "--config.data.source=folder", "--config.data.path=/no/such"
    with pytest.raises(UserError, match="ended with exit code 3: .*/no/such") as caught:
        trainer.train_until(tmp_path, 3, flags, signal.SIGTERM)
    assert caught.value.exit_code == DataError.exit_code


@pytest.mark.faults
@pytest.mark.parametrize("devices, flags", [(1, ()), (4, ("--config.mesh.fsdp=2",))])
def test_kill_and_resume_change_no_bit(tmp_path, devices, flags):
    done = verify("--steps=4", f"--workdir={tmp_path / 'v'}", *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    assert "the same, bit for bit: parameters, EMA and optimizer after steps 4 and 8" in done.stdout
    assert checkpoint.step_folders(tmp_path / "v" / "resumed" / "checkpoints") == [8, 4]


@pytest.mark.faults
def test_kill_and_resume_change_no_bit_of_two_processes(servers, tmp_path):
    command = "verify_resume", TINY, "--steps=4", f"--workdir={tmp_path / 'v'}"
    for code, stdout, stderr in run_job(servers, command, command):
        assert code == 0, stderr
        assert "the same, bit for bit" in stdout
    assert len(list((tmp_path / "v" / "resumed").glob("rows.*.jsonl"))) == 2


@pytest.mark.faults
def test_a_bit_that_flips_while_a_run_is_down_is_named(tmp_path, monkeypatch):
    """The checkpoint from which the run resumes has a flipped bit, and digests that fit it."""
    train = trainer.train_until

    def forging(workdir, step, flags, end):
        first = train(workdir, step, flags, end)
        if end == signal.SIGKILL:
            forged.flip_bit(workdir, step, KERNEL)
        return first

    monkeypatch.setattr(trainer, "train_until", forging)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["verify_resume", TINY])  # what the children get
    says = rf"the resumed run is not the straight one: step 4: {KERNEL} differs in 1 of .* more"
    with pytest.raises(UserError, match=says):
        in_process.launch("verify_resume", TINY, "--steps=4", f"--workdir={tmp_path / 'v'}")


@pytest.mark.faults
def test_a_replay_finds_what_the_hardware_did(tmp_path):
    flags = "--config.checkpoint.keep_last=9", "--workdir", tmp_path / "run"
    command = [sys.executable, "-m", "launch.train", TINY, *map(str, flags)]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    replay = lambda: verify("--replay=3", f"--workdir={tmp_path / 'run'}", devices=4)
    done = replay()
    assert done.returncode == 0, done.stderr
    assert "steps 4 to 6 gave the digests of checkpoint 6 again" in done.stdout
    assert not (tmp_path / "run" / "replay-3").exists()
    forged.flip_bit(tmp_path / "run", 6, KERNEL)
    done = replay()
    assert done.returncode == 1
    assert f"step 6: {KERNEL} differs: its digest is " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = replay()
    assert done.returncode == 2 and "is of an earlier replay; delete it" in done.stderr
    shutil.rmtree(tmp_path / "run" / "replay-3")
