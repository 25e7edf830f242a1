"""A job of two processes, each with four devices, is the run of one process with eight."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import cluster
from snapvideo_jax import build, train
from snapvideo_jax.data import pipeline
from snapvideo_jax.errors import ConfigError, DataError, StorageError
from snapvideo_jax.parallel import hosts
from snapvideo_jax.training import restore
from tests import hosts_worker, tiny
from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PYTHONFAULTHANDLER": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
TINY = "--config=tests/tiny.py"
TRAIN = ("train", TINY)


def free_port():
    with socket.socket() as tried:
        tried.bind(("localhost", 0))
        return tried.getsockname()[1]


def start(servers, *commands):
    """Starts a process of a job for each command; returns their ids."""
    flags = f"--coordinator=localhost:{free_port()}", "--num_processes=2"
    both = enumerate(zip(servers, commands, strict=True))
    return [server.start(*command, *flags, f"--process_id={i}") for i, (server, command) in both]


def end(server):
    """(exit code, stdout, stderr) of a process, but for what Gloo says of a peer that is gone."""
    done = server.wait()
    lines = done.stderr.splitlines(keepends=True)
    said = "".join(line for line in lines if not line.startswith("[external/gloo/"))
    return done.returncode, done.stdout, said


def signal_later(seconds, number, *processes):
    """Returns the started timer of a signal to what hangs; what has ended hears nothing."""

    def send():
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    timer = threading.Timer(seconds, send)
    timer.start()
    return timer


def run_job(servers, *commands):
    """(exit code, stdout, stderr) of each process of a job; what hangs is ended, and says where."""
    late = signal_later(900, signal.SIGABRT, *start(servers, *commands))
    outputs = [end(server) for server in servers]
    late.cancel()
    return outputs


# Of "[Gloo] Rank 0 is connected to 7 peer ranks. Expected number of connected peer ranks is : 7",
# which several threads write at a time, so that lines are cut anywhere.
GLOO = set("Gloo Rank is connected to peer ranks Expected number of".split())


@pytest.fixture(scope="module")
def pair(servers, tmp_path_factory):
    """(folder of the run, folder of records, what the processes said)."""
    run, records = tmp_path_factory.mktemp("pair") / "run", tmp_path_factory.mktemp("records")
    command = "tests/hosts_worker.py", records, TINY, f"--workdir={run}"
    return run, records, run_job(servers, command, command)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, program, final state, digests of the rows fed) of one process and eight devices."""
    folder, rows, config = tmp_path_factory.mktemp("alone"), [], tiny.get_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Feed, "__next__", hosts_worker.record(rows))
        program = build.train_program
        programs = []
        patch.setattr(
            build, "train_program", lambda *sizes: programs.append(program(*sizes)) or programs[0]
        )
        state = train.train(config, folder, lambda line: None)
    return folder, programs[0], state, rows


def test_a_signal_to_one_process_stops_both_at_the_same_step(pair):
    run, _, outputs = pair
    for code, _, stderr in outputs:
        assert code == 143, stderr
        # Process 1 got it as it drew step 3; what it says is heard one step later.
        assert stderr.splitlines()[-1] == "preempted: saved step 4, resume with the same command"
    assert (run / "checkpoints" / "8").is_dir()


def test_the_first_process_speaks_for_both(pair):
    (_, first, _), (_, second, _) = pair[2]
    assert "resuming at step 4 on 8 cpu device(s) data=8" in first and "done: step 8" in first
    assert set(re.findall(r"[A-Za-z]+", second)) <= GLOO


def test_each_shared_file_is_written_once(pair):
    run = pair[0]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert len(list((run / "tensorboard").iterdir())) == 2  # one for each start of the run
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints", "config.json", "goodput.json", "lock", "metrics.jsonl",
        "parameters.txt", "saved.json", "tensorboard", "vocabulary.model",
    ]  # fmt: skip


def test_the_data_are_those_of_one_process_bit_for_bit(pair, alone):
    rows = [json.loads((pair[1] / f"rows.{i}.json").read_text()) for i in (0, 1)]
    assert [a + b for a, b in zip(*rows, strict=True)] == alone[3]


def test_the_noise_is_that_of_one_process_bit_for_bit(pair, alone):
    parts = {}
    for i in (0, 1):
        with np.load(pair[1] / f"noise.{i}.npz") as shards:
            parts |= {int(start): shards[start] for start in shards.files}
    both = np.concatenate([parts[start] for start in sorted(parts)])
    assert np.array_equal(both, np.asarray(hosts_worker.noise(alone[1].mesh)))


def test_the_losses_are_those_of_one_process(pair, alone):
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (pair[0], alone[0])
    ]
    for name in ("loss", "grad_norm"):
        here, there = ([row[name] for row in run] for run in rows)
        np.testing.assert_allclose(here, there, rtol=1e-5)


def test_one_process_restores_what_two_saved_and_finds_the_parameters_of_its_own_run(pair, alone):
    _, program, state, _ = alone
    restored = restore.newest(pair[0] / "checkpoints", program.abstract_state, print)
    assert restored is not None and restored.step == 8
    for name in ("params", "ema"):
        pairs = zip(
            jax.tree.leaves(getattr(restored.state, name)),
            jax.tree.leaves(getattr(state, name)),
            strict=True,
        )
        for here, there in pairs:
            np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)


def test_two_processes_restore_what_one_saved(servers, alone):
    command = *TRAIN, f"--workdir={alone[0]}"
    outputs = run_job(servers, command, command)
    assert [code for code, _, _ in outputs] == [0, 0], outputs
    assert f"already at step 8 of 8: {alone[0]}" in outputs[0][1]


@pytest.mark.parametrize(
    ("code", "flag", "says"),
    [
        (2, "--config.training.ema_half_life=5", r"has training.ema_half_life=5.0 where process 0"),
        (3, "--config.data.source=folder --config.data.path=/no/such", r"/no/such.*\(process 1\)"),
    ],
)
def test_processes_that_differ_end_with_one_line_each_and_train_nothing(
    servers, tmp_path, code, flag, says
):
    command = *TRAIN, f"--workdir={tmp_path / 'run'}"
    outputs = run_job(servers, command, (*command, *flag.split()))
    for exit_code, _, stderr in outputs:
        assert exit_code == code, stderr
        assert re.search(f"^error: .*{says}", stderr) and len(stderr.splitlines()) == 1
    assert outputs[0][2] == outputs[1][2] and not (tmp_path / "run").exists()


LONE = """
import jax, numpy as np
from jax.experimental import multihost_utils
from launch import cluster, entry
from snapvideo_jax.errors import DataError
def body():
    step = lambda: multihost_utils.process_allgather(np.zeros(1))
    step()
    if jax.process_index() == 1:
        raise DataError("clip.mp4 is gone")
    step()
cluster.LEAVE = 1
entry.run(body)
"""


def test_a_process_that_fails_alone_ends_the_others_too(servers, tmp_path):
    (tmp_path / "lone.py").write_text(LONE)
    command = [tmp_path / "lone.py"]
    (code, _, stderr), (failed, _, why) = run_job(servers, command, command)
    assert (failed, why) == (3, "error: clip.mp4 is gone\n")
    assert (code, stderr) == (3, "error: clip.mp4 is gone (process 1)\n")


LOST = """
import os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from launch import entry
number, victim, phase = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
def body():
    step = lambda: multihost_utils.process_allgather(np.zeros(1))
    step()
    if jax.process_index() == victim:
        os.kill(os.getpid(), number)
    step() if phase == "step" else time.sleep(300)
entry.run(body)
"""


@pytest.mark.parametrize(
    ("number", "victim", "phase"),
    [
        (signal.SIGKILL, 1, "step"),
        pytest.param(signal.SIGKILL, 1, "waiting", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, "step", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, "waiting", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, "waiting", marks=pytest.mark.slow),
    ],
)
def test_the_others_name_a_process_that_was_killed_or_hangs(
    servers, tmp_path, number, victim, phase
):
    (tmp_path / "lost.py").write_text(LOST)
    command = tmp_path / "lost.py", int(number), victim, phase
    both = start(servers, command, command)
    limit = signal_later(120, signal.SIGKILL, both[1 - victim])
    code, _, stderr = end(servers[1 - victim])
    limit.cancel()
    with contextlib.suppress(ProcessLookupError):
        os.kill(both[victim], signal.SIGKILL)
    servers[victim].wait()
    assert stderr == (
        f"error: process {victim} of the job, on {socket.gethostname()}, was killed or hangs: see "
        "what it said last, and start the job again\n"
    )
    assert code == 1


@pytest.mark.slow
def test_where_the_first_process_was_killed_the_others_end_too(servers, tmp_path):
    """JAX ends them, at once and with a stack trace."""
    (tmp_path / "lost.py").write_text(LOST)
    command = tmp_path / "lost.py", int(signal.SIGKILL), 0, "waiting"
    (first, _, _), (second, _, stderr) = run_job(servers, command, command)
    assert (first, second) == (-signal.SIGKILL, -signal.SIGABRT) and "another task died" in stderr


def test_what_one_process_cannot_do_is_raised_on_all_with_its_number(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "gather", lambda mine: [mine, mine, ["DataError", "no clip"]])
    with pytest.raises(DataError, match=r"^no clip \(process 2\)$"):
        hosts.raise_on_all(lambda: 1)


def test_a_fact_that_one_process_lacks_is_a_difference(monkeypatch):
    monkeypatch.setattr(hosts, "gather", lambda mine: [mine, ["b", {"x": 1}]])
    with pytest.raises(ConfigError, match="process 1 on b has y=None where process 0 has 2"):
        hosts.check_same({"x": 1, "y": 2}, ConfigError)
    hosts.check_same({"x": 1}, ConfigError)


def test_a_folder_that_is_not_the_first_process_s_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "STORAGE_WAIT", 0)
    with (
        hosts.claim_folder(tmp_path),
        pytest.raises(StorageError, match="storage that all hosts share"),
    ):
        hosts._check_seen(tmp_path, "process 1 on another host")


MISSING = """
from launch import cluster, entry
cluster.JOIN = 1
entry.run(lambda: print("met"))
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_finds_no_other_gives_up_with_one_line(index):
    flags = f"--coordinator=localhost:{free_port()}", "--num_processes=2", f"--process_id={index}"
    command = [sys.executable, "-c", MISSING, *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1 and done.stdout == ""  # so that launchers try again
    assert done.stderr.startswith("error: waited 1 s for the 2 processes of the job")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def job_from_flags(monkeypatch):
    """cluster.job_from_flags with the values of its three flags."""

    def job_from_flags(*values, in_cluster=False):
        for flag, value in zip(("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"), values, strict=True):
            monkeypatch.setattr(cluster, flag, type("Flag", (), {"value": value}))
        return cluster.job_from_flags(in_cluster)

    return job_from_flags


@pytest.mark.parametrize(
    "values",
    [
        ("h:1", 2, None), ("h:1", None, 0), (None, 2, 0), (None, None, 0), ("h:1", 2, 2),
        ("h", 2, 0), ("h:port", 2, 0), ("h:65536", 2, 0), ("h:0", 2, 0),
    ],
)  # fmt: skip
def test_flags_of_a_job_that_do_not_fit_are_refused(job_from_flags, values):
    with pytest.raises(ConfigError):
        job_from_flags(*values)


def test_a_job_is_what_flags_or_the_environment_say(job_from_flags, monkeypatch):
    assert job_from_flags(None, None, None) is None
    job = job_from_flags("h:1", 2, 1)
    assert [*job.values()][:3] == ["h:1", 2, 1]
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "h:1")
    assert job_from_flags(None, 2, 1) == job
    assert job_from_flags(None, None, None, in_cluster=True) is None  # the cluster says the rest
    with pytest.raises(ConfigError, match="needs all of"):
        job_from_flags(None, None, None)


SLURM = {f"SLURM_{name}": "2" for name in cluster.SLURM}


@pytest.mark.parametrize(
    ("in_cluster", "environment", "platforms"),
    [
        (False, {}, ""),
        (False, {"KUBERNETES_SERVICE_HOST": "h"}, ""),
        (True, SLURM, ""),
        (False, SLURM | {"SLURM_NTASKS": "1"}, ""),
        (False, {"SLURM_JOB_ID": "2", "SLURM_NTASKS": "2"}, ""),  # the batch script itself
        (True, {"OMPI_MCA_orte_hnp_uri": "u", "OMPI_COMM_WORLD_SIZE": "2"}, "cpu"),
        (True, {}, "tpu,cpu"),
        (False, {"TPU_SKIP_MDS_QUERY": "1"}, "tpu,cpu"),
        (True, {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, "tpu,cpu"),
        (False, {"TPU_WORKER_HOSTNAMES": "localhost"}, "tpu,cpu"),
        (True, {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "tpu,cpu"),
        (False, {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, "tpu,cpu"),
        (False, {"TPU_WORKER_HOSTNAMES": "a,b"}, "cpu"),
    ],
)
def test_a_job_needs_no_flags_where_a_cluster_started_it(in_cluster, environment, platforms):
    assert cluster.started_by_cluster(environment, platforms) is in_cluster
