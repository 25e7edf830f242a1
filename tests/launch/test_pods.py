"""launch/pods: what reaches launch.train through each launcher, and what restarts it.

The clouds' programs are fakes on PATH, which note their arguments and do on this machine what the
real ones do elsewhere: so these tests say nothing of the clouds themselves.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from snapvideo_jax import errors
from tests.test_docs import PAGES, bash_lines, words

ROOT = Path(__file__).parent.parent.parent
PODS = Path("launch/pods")
# Flags of launch.train with whatever a shell, YAML or Kubernetes could take for its own.
FLAGS = (
    "--config=configs/shapes.py:fsdp", "--workdir=/runs/it's here", "", "two words", "*", "~", "#",
    '"quoted" $HOME $(HOME) $$(HOME) $$ `id` \\n \\', "first\nsecond\n", "a\tb", "&", "é", "--",
)  # fmt: skip
VALUE = 'it\'s "$(HOME)" $$ \\ and\nmore'
LAUNCHERS = {
    "tpu_vm": ("--name=t", "--zone=z"),
    "queued": ("--name=t", "--zone=z", "--accelerator=v5litepod-16"),
    "gcluster": ("--name=t", "--image=i", "--compute_type=ct5lp-hightpu-4t", "--topology=4x4"),
    "jobset": ("--name=t", "--image=i", "--tpu=v5e:4x4", "--claim=c"),
    "skypilot": ("--name=t", "--accelerators=tpu-v6e-16"),
    "slurm": ("--name=t",),
}

# Every fake notes its call. `next FILE` takes the first line of a file; the last one stays.
NOTE = """#!/usr/bin/env bash
{ printf '%s\\037' "${0##*/}" "$@"; printf '\\036'; } >> "$FAKES/calls"
next() { head -n1 "$FAKES/$1"; [ "$(wc -l < "$FAKES/$1")" -eq 1 ] || sed -i 1d "$FAKES/$1"; }
"""
FAKES = {
    "python": """
[ "${2-}" = launch.train ] || exit 0
env -0 > "$FAKES/environment"
echo "training"
exit "$(next codes)" """,
    "gcloud": """
case "$*" in
  *" scp "*) cp "$5" "$HOME"; exit ;;
  *" describe "*) next states; exit ;;
  *"host.sh follow"*)
    [ "$(next connections)" = there ] || {
      until [ -e "$HOME/snapvideo_jax/.pods/t/code" ]; do sleep 1; done
      exit 255
    } ;;
esac
for word; do case $word in --command=*) cd "$HOME" && bash -c "${word#*=}" ;; esac; done""",
    "kubectl": 'cat > "$FAKES/input"',
    "gcluster": "",
    "sky": 'cp "$3" "$FAKES/input"',
    "sbatch": """
while [[ $1 != */slurm_job.sh ]]; do shift; done
SLURM_CPUS_PER_TASK=8 SLURM_JOB_ID=7 bash "$@" """,
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
    "scontrol": "",
    "sleep": "exec /bin/sleep 0.01",
}


class Bench:
    """A checkout, the home of a worker, and programs, all in folders of a test."""

    def __init__(self, folder):
        self.fakes, self.home, self.checkout = (folder / n for n in ("fakes", "home", "checkout"))
        self.fakes.mkdir()
        for name, does in FAKES.items():
            (self.fakes / name).write_text(NOTE + does)
            (self.fakes / name).chmod(0o755)
        for place in (self.checkout, self.home / "snapvideo_jax"):
            (place / ".venv/bin").mkdir(parents=True)
            (place / ".venv/bin/python").symlink_to(self.fakes / "python")
        shutil.copytree(ROOT / PODS, self.checkout / PODS)
        shutil.copy(ROOT / "launch/environment.sh", self.checkout / "launch")
        git = ["git", "-c", "user.name=t", "-c", "user.email=t", "-C", str(self.checkout)]
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "add", "launch"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message=t"], check=True)
        self.say(codes=[0], states=["ACTIVE"], connections=["there"])

    def say(self, **lines):
        """Sets what the fakes say, each time the next: exit codes, states, connections."""
        for name, values in lines.items():
            (self.fakes / name).write_text("".join(f"{value}\n" for value in values))

    def bash(self, *words, **environment):
        names = {"PATH": f"{self.fakes}:/usr/bin:/bin", "HOME": self.home, "FAKES": self.fakes}
        return subprocess.run(
            ["bash", *map(str, words)],
            cwd=self.checkout,
            env={key: str(value) for key, value in (names | environment).items()},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def launch(self, name, *own, flags=("--workdir=w",), **environment):
        script = PODS / f"{name}.sh"
        return self.bash(script, *LAUNCHERS[name], *own, "--", *flags, **environment)

    def calls(self, program=""):
        """Arguments of each call of a program; of all, with its name before them."""
        noted = self.fakes / "calls"
        lines = noted.read_text().split("\036")[:-1] if noted.exists() else []
        calls = [line.split("\037")[:-1] for line in lines]
        return [call[1:] for call in calls if call[0] == program] if program else calls

    def gcloud(self):
        """What gcloud was to do: its fifth word, of all calls that do not just look."""
        return [call[3] for call in self.calls("gcloud") if call[3] != "describe"]

    def trained(self):
        """The flags of each start of launch.train."""
        return [call[2:] for call in self.calls("python") if call[:2] == ["-m", "launch.train"]]

    def variable(self, name):
        """What an environment variable was when launch.train was started last."""
        pairs = (self.fakes / "environment").read_text().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)[name]

    def manifest(self):
        """What kubectl or sky got."""
        return yaml.safe_load((self.fakes / "input").read_text())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def job(manifest):
    """The job of one slice in a JobSet."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(manifest):
    (container,) = job(manifest)["template"]["spec"]["containers"]
    return container


def kubernetes(text):
    """What a container gets for an argument that names no variable of it, as Kubernetes says."""
    return text.replace("$$", "$")


def run_submitted(bench):
    """Runs what was submitted, as the shell of the node or the container does."""
    for call in bench.calls("gcluster"):
        (command,) = [word for word in call if word.startswith("--command=")]
        bench.bash("-c", kubernetes(command.removeprefix("--command=")))
    if bench.calls("sky"):
        bench.bash("-c", bench.manifest()["run"])
    if bench.calls("kubectl"):
        train = container(bench.manifest())
        pairs = [f"{each['name']}={kubernetes(each['value'])}" for each in train["env"]]
        arguments = map(kubernetes, train["args"])
        bench.bash("-c", shlex.join(["env", *pairs, *train["command"], *arguments]))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_flags_and_variables_arrive_as_they_are(name, bench):
    done = bench.launch(name, f"--env=KEY={VALUE}", flags=FLAGS)
    assert done.returncode == 0, done.stderr
    run_submitted(bench)
    assert bench.trained() == [list(FLAGS)]
    assert bench.variable("KEY") == VALUE
    assert bench.variable("HOME") == str(bench.home)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_does_nothing_and_shows_what_a_run_does(name, bench):
    bench.say(states=["NONE", "ACTIVE"])
    shown = bench.launch(name, "--dry_run", flags=FLAGS)
    assert shown.returncode == 0 and not shown.stderr
    assert not bench.calls() and not (bench.fakes / "input").exists()
    bench.launch(name, flags=FLAGS)
    done = submissions(bench)
    commands = shown.stdout
    if (bench.fakes / "input").exists():
        manifest = (bench.fakes / "input").read_text()
        assert commands.startswith(manifest)
        commands = commands.removeprefix(manifest)
    (bench.fakes / "calls").unlink()
    (bench.checkout / "task.yaml").touch()
    assert bench.bash("-ec", commands).returncode == 0
    assert name == "jobset" or submissions(bench) == done


def submissions(bench):
    """What the clouds were asked to do, with files by their names."""
    programs = "gcloud", "gcluster", "sky", "sbatch"
    calls = [call for call in bench.calls() if call[0] in programs and "describe" not in call]
    return [[re.sub(r"^/\S+/(?=task.yaml$)", "", word) for word in call] for call in calls]


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("--name is required", lambda own: [*own[1:], "--", "--workdir=w"]),
        ("--name=T_ must have up to", lambda own: ["--name=T_", *own[1:], "--", "--workdir=w"]),
        ("--workdir=FOLDER must be among", lambda own: [*own, "--", "--config=configs/shapes.py"]),
        ("--workdir=FOLDER must be among", lambda own: own),
        ("there is no flag '--zones=z'", lambda own: [*own, "--zones=z", "--", "--workdir=w"]),
        ("there is no flag '--zone'", lambda own: [*own, "--zone", "--", "--workdir=w"]),
        ("unexpected argument 'z'", lambda own: [*own, "z", "--", "--workdir=w"]),
        ("--env must be --env=KEY=VALUE", lambda own: [*own, "--env=KEY", "--", "--workdir=w"]),
        ("--env must be --env=KEY=VALUE", lambda own: [*own, "--env=A B=C", "--", "--workdir=w"]),
    ],
)
def test_a_wrong_command_is_one_line_and_does_nothing(name, says, change, bench):
    done = bench.bash(PODS / f"{name}.sh", *change(LAUNCHERS[name]))
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1
    assert not bench.calls()


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("tpu_vm", "--restarts=some"),
        ("queued", "--slices=2.5"),
        ("gcluster", "--slices=-1"),
        ("jobset", "--slices=0"),
        ("jobset", "--tpu=v5e-16"),
        ("jobset", "--tpu=v7:4x4"),
        ("slurm", "--gpus=08"),
        ("skypilot", "--nodes="),
    ],
)
def test_a_wrong_value_is_named(name, flag, bench):
    done = bench.launch(name, flag)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {flag} must be ")
    assert done.stderr.count("\n") == 1 and not bench.calls()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_names_every_flag_and_an_example(name):
    script = ROOT / PODS / f"{name}.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and not shown.stderr
    lists = re.search(r'^parse "(.*)" "(.*)" "(.*)" "\$@"$', script.read_text(), re.M)
    for flag in " ".join(lists.groups()).split() + ["env", "dry_run"]:
        assert f"--{flag}" in shown.stdout
    assert f"bash launch/pods/{name}.sh " in shown.stdout


# Restarts.


def listed(name):
    """The codes of a list in common.sh."""
    text = (ROOT / PODS / "common.sh").read_text()
    return {int(code) for code in re.search(rf"^{name}=\((.*)\)$", text, re.M)[1].split()}


def test_each_exit_code_is_final_or_restarts():
    final, restart = listed("FINAL_CODES"), listed("RESTART_CODES")
    assert not final & restart
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.exit_code for kind in kinds} <= final | restart
    assert errors.ConfigError.exit_code in final and errors.DataError.exit_code in final
    assert errors.Preempted.exit_code in restart and errors.UserError.exit_code in restart


@pytest.mark.parametrize(
    ("codes", "starts", "code"),
    [
        ([0], 1, 0),
        ([2], 1, 2),
        ([3], 1, 3),
        ([130], 1, 130),
        ([1, 5, 0], 3, 0),
        ([1, 3], 2, 3),
        ([1], 3, 1),
        ([143, 143, 143, 143, 0], 5, 0),
    ],
)
def test_a_run_over_ssh_starts_again_after_what_is_no_fault_of_its_own(codes, starts, code, bench):
    bench.say(codes=codes)
    done = bench.launch("tpu_vm", "--restarts=2")
    assert (len(bench.trained()), done.returncode) == (starts, code)
    assert (bench.checkout / "t.log").read_text().count("training") == starts


def test_a_lost_connection_is_no_end_of_the_run(bench):
    bench.say(connections=["lost", "lost", "there"], codes=[4])
    done = bench.launch("tpu_vm")
    assert done.returncode == 4 and len(bench.trained()) == 1
    assert bench.gcloud() == ["scp", *["ssh"] * 5]


def test_queued_resources_are_booked_waited_for_and_deleted(bench):
    bench.say(states=["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], codes=[3])
    done = bench.launch("queued", "--slices=2", "--spot")
    assert done.returncode == 3 and len(bench.trained()) == 1
    assert bench.gcloud() == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    create = next(call for call in bench.calls("gcloud") if "create" in call)
    assert {"--spot", "--node-count=2", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(create)
    assert "WAITING_FOR_RESOURCES" in done.stderr


def test_preempted_resources_are_booked_again(bench):
    bench.say(
        states=["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"],
        connections=["lost", "there"],
        codes=[0],
    )
    done = bench.launch("queued", "--keep")
    assert done.returncode == 0, done.stderr
    first, again = ["scp", "ssh", "ssh", "ssh"], ["delete", "create", "scp", "ssh", "ssh", "ssh"]
    assert bench.gcloud() == first + again


def test_resources_that_cannot_be_had_are_an_error(bench):
    bench.say(states=["NONE", "FAILED"])
    done = bench.launch("queued")
    assert done.returncode == 1 and not bench.trained() and bench.gcloud() == ["create"]
    assert done.stderr.splitlines()[-1].startswith("error: t is FAILED; see gcloud compute tpus ")


@pytest.mark.parametrize(
    ("code", "restarts_before", "is_queued_again"),
    [(0, 0, False), (2, 0, False), (143, 0, True), (1, 99, True), (143, 100, False)],
)
def test_a_slurm_job_goes_back_to_the_queue(code, restarts_before, is_queued_again, bench):
    bench.say(codes=[code])
    done = bench.launch("slurm", SLURM_RESTART_COUNT=restarts_before)
    assert done.returncode == code
    assert bench.calls("scontrol") == ([["requeue", "7"]] if is_queued_again else [])


def test_a_jobset_fails_on_final_codes_and_does_not_count_preemptions(bench):
    bench.launch("jobset", "--restarts=7")
    manifest = bench.manifest()
    disrupted, preempted, final = job(manifest)["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert preempted["onExitCodes"]["values"] == [errors.Preempted.exit_code]
    assert set(final["onExitCodes"]["values"]) == listed("FINAL_CODES")
    policy = manifest["spec"]["failurePolicy"]
    ignored, failed = policy["rules"]
    assert policy["maxRestarts"] == 7 and job(manifest)["backoffLimit"] == 0
    assert ignored["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert failed["action"] == "FailJobSet" and "onJobFailureMessagePatterns" not in failed
    # What Kubernetes says of a job that a rule ends.
    exited = "Container train for pod a/b failed with exit code {} matching FailJob rule at index 1"
    matches = lambda text: any(re.search(p, text) for p in ignored["onJobFailureMessagePatterns"])
    assert matches(exited.format(143)) and not matches(exited.format(2))
    assert matches("Pod a/b has condition DisruptionTarget matching FailJob rule at index 0")


def test_gcluster_and_skypilot_restart_the_same_codes(bench):
    bench.launch("gcluster")
    (call,) = bench.calls("gcluster")
    (codes,) = [word for word in call if word.startswith("--restart-on-exit-codes=")]
    assert {int(code) for code in codes.partition("=")[2].split(",")} == listed("RESTART_CODES")
    bench.launch("skypilot")
    recovery = bench.manifest()["resources"]["job_recovery"]
    # 137 is what SkyPilot says of the hosts that it ends itself.
    assert set(recovery["recover_on_exit_codes"]) <= listed("RESTART_CODES") - {137}
    assert recovery["max_restarts_on_errors"] == 0


# On a host.


def host(bench, action, *command):
    return bench.bash(PODS / "host.sh", action, ".pods/t", *command)


def test_a_run_outlives_its_connection_and_is_not_started_twice(bench):
    loop = "trap 'exit 130' INT; echo started; for _ in {1..99}; do sleep 1; done"
    command = ("bash", "-c", loop)
    assert host(bench, "start", *command).returncode == 0
    assert host(bench, "runs").returncode == 0
    watcher = (bench.checkout / ".pods/t/watcher").read_text()
    host(bench, "start", *command)
    assert (bench.checkout / ".pods/t/watcher").read_text() == watcher
    log = bench.checkout / ".pods/t/log"
    deadline = time.monotonic() + 20
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text() == "started\n"
    assert host(bench, "stop").returncode == 0
    followed = host(bench, "follow")
    assert followed.returncode == 130 and re.fullmatch(r"\[\S+\] started\n", followed.stdout)
    assert host(bench, "runs").returncode == 1


def test_a_run_that_was_killed_says_so(bench):
    host(bench, "start", "bash", "-c", "kill -9 $$")
    assert host(bench, "follow").returncode == 137


def test_a_run_is_stopped_on_all_workers(bench):
    done = bench.bash(PODS / "tpu_vm.sh", *LAUNCHERS["tpu_vm"], "--stop", "--dry_run")
    assert done.returncode == 0 and "--worker=all" in done.stdout
    assert "host.sh stop .pods/t" in done.stdout


# What is submitted.


@pytest.mark.parametrize(
    ("tpu", "accelerator", "topology", "hosts", "chips"),
    [
        ("v5e:4x4", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", "1x1", 1, 1),
        ("v5p:2x2x2", "tpu-v5p-slice", "2x2x2", 2, 4),
        ("v6e:8x16", "tpu-v6e-slice", "8x16", 32, 4),
        ("v4:2x2x4", "tpu-v4-podslice", "2x2x4", 4, 4),
    ],
)
def test_a_slice_is_a_job_with_a_pod_a_host(tpu, accelerator, topology, hosts, chips, bench):
    bench.launch("jobset", f"--tpu={tpu}", "--slices=3", "--spot", "--queue=q", "--mount=/m")
    manifest = bench.manifest()
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 3
    pod = job(manifest)["template"]["spec"]
    assert job(manifest)["parallelism"] == job(manifest)["completions"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }
    assert container(manifest)["resources"] == {"limits": {"google.com/tpu": chips}}
    assert container(manifest)["volumeMounts"][0]["mountPath"] == "/m"
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}


@pytest.mark.parametrize("own", [(), ("--spot", f"--env=KEY={VALUE}")])
def test_the_jobs_of_a_jobset_fit_kubernetes_schema(own, bench):
    bench.launch("jobset", *own, flags=FLAGS)
    manifest = bench.manifest()
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "t"}}
    kubernetes_validate.validate(head | {"spec": job(manifest)}, "1.31", strict=True)


def test_gpu_nodes_of_skypilot_join_by_flags(bench):
    bench.launch("skypilot", "--accelerators=H100:8", "--nodes=2")
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": 2}
    bench.bash("-c", bench.manifest()["run"], SKYPILOT_NODE_RANK=1, **node)
    job_flags = ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]
    assert bench.trained() == [["--workdir=w", *job_flags]]
    assert bench.manifest()["num_nodes"] == 2


def test_slurm_starts_a_process_a_gpu_and_warns_it_before_its_time_is_up(bench):
    bench.launch("slurm", "--nodes=4", "--gpus=6")
    (call,) = bench.calls("sbatch")
    assert {"--nodes=4", "--ntasks-per-node=6", "--gpus-per-node=6", "--signal=TERM@300"} < set(
        call
    )
    assert "--requeue" in call


# What they rest on.


def test_the_image_is_pinned_and_not_of_root():
    lines = (ROOT / PODS / "Dockerfile").read_text().splitlines()
    assert re.fullmatch(r"FROM python:3\.1[123]\.\d+-slim-\w+", lines[2])
    assert lines[-3:-1] == ["ARG RUN_AS=snapvideo", "USER $RUN_AS"]
    sources = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / source).exists() for source in sources)


def requirements(path):
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def test_what_is_installed_on_tpus_is_pinned_as_requirements_allow():
    pins = {
        pin.name: next(iter(pin.specifier)).version
        for pin in requirements(ROOT / PODS / "requirements-tpu.txt")
    }
    for needed in requirements(ROOT / "requirements.txt"):
        assert needed.specifier.contains(pins[needed.name]), needed


SCRIPTS = [path for path in ROOT.rglob("*.sh") if ".venv" not in path.parts]
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_every_script_passes_shellcheck():
    run = [path for path in [*SCRIPTS, ROOT / ".ci/run"] if path.read_text().startswith("#!")]
    sourced = set(SCRIPTS) - set(run)
    assert len(run) > 8 and sourced
    follow = ["--external-sources", "--source-path=SCRIPTDIR"]
    # Variables of a sourced file are set or used by the scripts that source it.
    for options, files in ((follow, run), (["--exclude=SC2034,SC2154"], sourced)):
        done = subprocess.run([SHELLCHECK, *options, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def pod_commands():
    """The script and its arguments, of every line of a page that starts one of launch/pods."""
    for line in (line for page in PAGES for line in bash_lines(page)):
        _, bash, command = line.partition("bash launch/pods/")
        if bash:
            yield words(f"launch/pods/{command}")


@pytest.mark.parametrize("command", pod_commands(), ids=lambda command: command[0])
def test_every_command_of_the_pages_is_one_that_the_launchers_take(command, bench):
    script, *rest = command
    done = bench.bash(script, "--dry_run", *rest)
    assert done.returncode == 0 and done.stdout, done.stderr
