"""A run that is stopped and started again is the run that was never stopped."""

import dataclasses
import importlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build, numerics
from snapvideo_jax import train as train_module
from snapvideo_jax.data import shapes
from snapvideo_jax.errors import (
    ConfigError,
    DataError,
    DivergedError,
    Preempted,
    Stopped,
    StorageError,
)
from snapvideo_jax.evaluation import job, noise_levels, result
from snapvideo_jax.files import video
from snapvideo_jax.parallel import chips, hosts
from snapvideo_jax.planner import cost
from snapvideo_jax.sampling import trained
from snapvideo_jax.train import train
from snapvideo_jax.training import checkpoint, restore
from tests import tiny
from tests.test_storage import fill


def quiet(line):
    pass


def config(**changes):
    made = tiny.get_config()
    for name, value in changes.items():
        made.update_from_flattened_dict({name.replace("__", "."): value})
    return made


PROGRAM = build.train_program
PROGRAMS = {}


def remembered(config, vocabulary_size, devices=None):
    """build.train_program, made once for each config but for what no program depends on."""
    if devices is not None:
        return PROGRAM(config, vocabulary_size, devices)
    fields = json.loads(config.to_json())
    decides = {name: fields[name] for name in fields if name not in ("log", "checkpoint")}
    key = json.dumps(decides), vocabulary_size
    if key not in PROGRAMS:
        PROGRAMS[key] = PROGRAM(config, vocabulary_size)
    return PROGRAMS[key]


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """Runs of one config in this process share their compiled step; test_launch.py does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "train_program", remembered)
        yield


def assert_same(a, b):
    paths = jax.tree_util.tree_leaves_with_path(a)
    for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y)), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(folder, final state, lines) of a run that nothing disturbed."""
    folder, lines = tmp_path_factory.mktemp("unbroken"), []
    return folder, train(config(), folder, lines.append), lines


def stop_at(monkeypatch, example, sent=signal.SIGTERM):
    """Sends this process a signal while example number `example` is drawn."""
    draw, state = shapes.example, {"sent": False}

    def drawn(world, seed, g, image):
        if not image and g == example and not state["sent"]:
            state["sent"] = True
            os.kill(os.getpid(), sent)
        return draw(world, seed, g, image=image)

    monkeypatch.setattr(shapes, "example", drawn)


# Examples far enough on to be drawn when steps are under way: until then a signal just ends a run.
@pytest.mark.parametrize(
    ("example", "sent", "error"),
    [(40, signal.SIGTERM, Preempted), (41, signal.SIGINT, Stopped)],
)
def test_a_stopped_run_ends_as_the_unbroken_one_bit_for_bit(
    unbroken, tmp_path, monkeypatch, example, sent, error
):
    stop_at(monkeypatch, example, sent)
    with pytest.raises(error, match="saved step . *, resume with the same command"):
        train(config(), tmp_path, quiet)
    lines = []
    state = train(config(), tmp_path, lines.append)
    assert any("resuming at step" in line for line in lines)
    folder, expected, _ = unbroken
    assert_same(state, expected)
    metrics = [(f / "metrics.jsonl").read_bytes() for f in (tmp_path, folder)]
    assert metrics[0] == metrics[1]


def test_the_screen_shows_parameters_progress_and_the_end(unbroken):
    text = "\n".join(unbroken[2])
    for expected in ("parameters, ", "network/blocks/read", "ETA", "step 8/8", "done"):
        assert expected in text
    table = (unbroken[0] / "parameters.txt").read_text()
    assert "network/blocks/read/attention/q/kernel" in table and "Total:" in table


def test_metrics_hold_every_step_and_finite_losses(unbroken):
    rows = [json.loads(line) for line in (unbroken[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(np.isfinite(row["loss"]) and row["skipped"] == 0 for row in rows)
    assert rows[0]["learning_rate"] == 0 and rows[-1]["learning_rate"] < rows[3]["learning_rate"]


def test_the_ledger_says_where_the_time_went(unbroken):
    entries = json.loads((unbroken[0] / "goodput.json").read_text())
    assert (entries["starts"], entries["step"], entries["steps"]) == (1, 8, 8)
    assert all(entries["seconds"][name] > 0 for name in ("start", "compile", "data", "checkpoint"))
    assert any(re.match(r"goodput \d+ % of .*compiling \d+ %", line) for line in unbroken[2])


def test_a_known_chip_has_the_work_of_a_step_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "of", lambda kind: chips.CHIPS[0][1])
    small = config(model__dtype="bfloat16", model__remat="block")
    program = build.train_program(small, 64)
    run = train_module.Run(small, tmp_path, None, None, program, {}, quiet, False, None)
    speed = train_module._speed(run)
    assert speed.peak == 918e12
    plain = build.train_program(config(model__dtype="bfloat16"), 64)
    flops = cost.flops(plain.step, plain.abstract_state, plain.abstract_batch)
    assert speed.flops == flops / 8


def test_tensorboard_events_are_written(unbroken):
    assert list((unbroken[0] / "tensorboard").glob("events.*"))


BOX = 2, 16, 16


def test_samples_are_shown_as_the_model_learns(tmp_path, monkeypatch):
    faked(monkeypatch)
    noise = np.random.default_rng(0).integers(0, 255, (2, *BOX, 3), np.uint8)
    drawing = lambda *_: noise
    monkeypatch.setattr(train_module, "generate", drawing)
    lines, prompts = [], ("a red circle", "a red fox in snow")
    drawn = config(log__samples_every=8, log__sample_prompts=prompts)
    train(drawn, tmp_path, lines.append)
    notes = [line for line in lines if line.startswith("note: no caption has ")]
    assert len(notes) == 1 and "has fox, in, snow of log.sample_prompts;" in notes[0]
    assert len(video.read_video(tmp_path / "samples" / "000008.gif")) == BOX[0]
    assert (tmp_path / "samples" / "000008.png").stat().st_size > 100


def test_a_finished_run_started_again_changes_nothing(unbroken):
    folder, _, _ = unbroken
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    lines = []
    train(config(), folder, lines.append)
    assert lines[-1].startswith("already at step 8 of 8")
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert {p for p in after if after[p] != before.get(p)} <= {folder / "lock"}


def test_another_experiment_in_the_same_folder_is_refused(unbroken):
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.1 there, 0\.2 here"):
        train(config(model__dropout=0.2), unbroken[0], quiet)


def test_a_broken_newest_checkpoint_costs_steps_not_the_run(unbroken, tmp_path):
    train(config(), tmp_path, quiet)
    newest = max(int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*"))
    (tmp_path / "checkpoints" / str(newest) / "meta" / "metadata").write_text("not json")
    lines = []
    state = train(config(), tmp_path, lines.append)
    assert any(f"ignoring checkpoint {newest} " in line for line in lines)
    assert any("resuming at step" in line for line in lines)
    assert_same(state, unbroken[1])


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_bit(unbroken, disk):
    folder, lines = disk(64 << 20), []

    def log(line):
        lines.append(line)
        if line.startswith("first step") and not (folder / "ballast").exists():
            fill(folder)
        if "could not save step 3 " in line:
            (folder / "ballast").unlink()

    state = train(config(), folder / "run", log)
    assert_same(state, unbroken[1])
    assert sum("could not save" in line for line in lines) == 1
    assert sum("metrics wait in memory" in line for line in lines) == 1
    metrics = [(f / "metrics.jsonl").read_bytes() for f in (folder / "run", unbroken[0])]
    assert metrics[0] == metrics[1]
    assert checkpoint.step_folders(folder / "run" / "checkpoints") == [8, 6]


@pytest.mark.faults
def test_a_disk_that_stays_full_ends_the_run_and_what_is_there_stays(unbroken, disk, monkeypatch):
    faked(monkeypatch)
    folder, lines = disk(64 << 20), []

    def log(line):
        lines.append(line)
        if line.startswith("step 4/"):
            fill(folder)

    short = config(checkpoint__every_steps=1, checkpoint__keep_last=9)
    with pytest.raises(StorageError, match="3 saves in a row failed: .* the disk is full"):
        train(short, folder / "run", log)
    saved = checkpoint.step_folders(folder / "run" / "checkpoints")
    assert saved and restore.newest_meta(folder / "run" / "checkpoints")["step"] == saved[0]
    assert all(path.name.isdigit() for path in (folder / "run" / "checkpoints").iterdir())
    (folder / "ballast").unlink()
    train(short, folder / "run", quiet)
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, 9))


EVALUATING = {"log__evaluate_every": 4, "log__evaluate_samples": 2}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder, final state) of a run with an evaluation every four steps."""
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, train(config(**EVALUATING), folder, quiet)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_evaluations_change_no_bit_of_training_and_stand_between_its_lines(evaluated, unbroken):
    assert_same(evaluated[1], unbroken[1])
    rows = rows_of(evaluated[0])
    assert [row for row in rows if "loss" in row] == rows_of(unbroken[0])
    places = [i for i, row in enumerate(rows) if "loss" not in row]
    assert places == [4, 9] and [rows[i]["step"] for i in places] == [4, 8]
    for step, place in zip((4, 8), places, strict=True):
        values = result.read(evaluated[0] / "evaluations" / f"{step:06d}.json").values
        row = {f"evaluation/{name}": value.value for name, value in values.items()}
        assert rows[place] == {"step": step} | row
        assert {"seen: all", "held out: all", "flicker", *noise_levels.NAMES} <= set(values)
    assert rows[4]["evaluation/loss at noise 2"] > rows[9]["evaluation/loss at noise 2"]
    assert not list((evaluated[0] / "evaluations").glob("*.parts"))


def test_a_run_that_is_killed_while_it_evaluates_goes_on_in_there(evaluated, tmp_path, monkeypatch):
    write, done = job._write, []

    def stopping(path, arrays):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        write(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config(**EVALUATING), tmp_path, quiet)
    lines = []
    state = train(config(**EVALUATING), tmp_path, lines.append)
    assert any("resuming at step 4" in line for line in lines)
    assert_same(state, evaluated[1])
    assert rows_of(tmp_path) == rows_of(evaluated[0])


def test_an_evaluation_needs_something_to_compare_with():
    with pytest.raises(ConfigError, match="evaluate_every needs --config.log.evaluate_path=DIR"):
        build.check(config(data__source="folder", data__path="d", log__evaluate_every=4))
    with pytest.raises(ConfigError, match="evaluate_every evaluates first stages alone"):
        build.check(config(data__low_res=(8, 8), log__evaluate_every=4))


def names_in(folder):
    """Which of the paper's names the one trace in a folder has."""
    (trace,) = folder.glob("plugins/profile/*/*.xplane.pb")
    content = trace.read_bytes()
    names = (b"blocks/attend_conditioning/", b"blocks/read/", b"blocks/global0/", b"blocks/write/")
    return [name for name in names if name in content]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The folders of a run with a trace of two steps and of one stopped within its trace.

    Made in a process of its own: the profiler of one that has loaded a TPU's compiler crashes.
    """
    folders = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("stopped")
    process = multiprocessing.get_context("spawn").Process(target=trace, args=folders)
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return folders


def trace(two, stopped):
    importlib.import_module("tests.conftest")  # the devices of all tests
    lines = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build, "train_program", remembered)
        train(config(), two, lines.append, profile=range(3, 5))
        written = lines.index(f"trace for xprof in {two / 'profile'}")
        assert not any(line.startswith("step 8/8") for line in lines[:written])
        stop_at(monkeypatch, 40)
        with pytest.raises(Preempted):
            train(config(), stopped, quiet, profile=range(1, 9))


@pytest.mark.slow
def test_a_trace_has_the_papers_names_and_changes_nothing(traced, unbroken):
    assert len(names_in(traced[0] / "profile")) == 4
    assert_same(train(config(), traced[0], quiet), unbroken[1])


@pytest.mark.slow
def test_a_run_that_is_stopped_within_the_trace_writes_it(traced):
    assert len(names_in(traced[1] / "profile")) == 4
    with pytest.raises(ConfigError, match=r"--profile=1:8: the run has steps \d to 8 left"):
        train(config(), traced[1], quiet, profile=range(1, 9))


class Metric(jax.Array):
    """A number that a device is still working on, until somebody asks for it."""

    shape, dtype = (), np.dtype(np.float32)

    def __init__(self, seen, step):
        self._seen, self._step = seen, step

    def __array__(self, dtype=None, copy=None):
        self._seen.append(("fetched", self._step))
        return np.zeros((), dtype)


def test_metrics_are_fetched_when_the_next_step_is_under_way(tmp_path, monkeypatch):
    """And nothing is computed in between, for that would wait for the step under way."""
    seen, whole, rates = [], build.train_program, build.schedule

    def schedule(config):
        return lambda step: seen.append(("computed",)) or rates(config)(step)

    def update(state, batch):
        step = 1 + int(state.step)
        seen.append(("dispatched", step))
        metrics = {name: Metric(seen, step) for name in ("loss", "grad_norm", "skipped")}
        return dataclasses.replace(state, step=state.step + 1), metrics

    faked = lambda *sizes: dataclasses.replace(whole(*sizes), step=update)
    monkeypatch.setattr(build, "train_program", faked)
    monkeypatch.setattr(build, "schedule", schedule)
    train(config(), tmp_path, quiet)
    order = [what for what, _ in itertools.groupby(seen)]
    expected, saved = [("computed",)], (3, 6, 8)  # whose state must be known to be sound
    for step in range(1, 9):
        before = [("fetched", step - 1)] if step - 1 not in (0, *saved) else []
        expected += [("dispatched", step), *before, *([("fetched", step)] if step in saved else [])]
    assert order == expected


def test_a_diverged_run_says_since_when(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "snapvideo_jax.training.step.sigmas.mean_loss_weight_F", lambda *numbers: float("nan")
    )
    for _ in range(2):  # nothing was saved, so the second run is the first
        with pytest.raises(DivergedError, match="since step 1, .* no checkpoint is from before"):
            train(config(seed=1, training__max_skipped=4), tmp_path, quiet)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {row["learning_rate"] for row in rows} == {0}  # of the update that was not made yet


def faked(monkeypatch, skipped=lambda step: False, destroyed=lambda step: False):
    """Steps that compute nothing: those `skipped` have no finite loss, those `destroyed` end so."""

    def update(state, batch):
        step = 1 + int(state.step)
        metrics = {"loss": 1.0, "grad_norm": 1.0, "skipped": 0}
        if skipped(step):
            metrics = {"loss": np.nan, "grad_norm": np.nan, "skipped": 1}
        params = state.params
        if destroyed(step):
            params = jax.tree.map(lambda x: x * np.nan, params)
        state = dataclasses.replace(state, step=state.step + 1, params=params)
        return state, {name: jnp.asarray(value) for name, value in metrics.items()}

    whole = build.train_program
    program = lambda *sizes: dataclasses.replace(whole(*sizes), step=update)
    monkeypatch.setattr(build, "train_program", program)


def test_a_run_that_ends_while_it_skips_is_not_done_and_names_what_is_sound(tmp_path, monkeypatch):
    faked(monkeypatch, skipped=lambda step: step >= 7)
    said = r"step 7, .*examples 48 to 55 .* from before it is step 3; .* delete 6 in .*checkpoints"
    for _ in range(2):
        with pytest.raises(DivergedError, match=said):
            train(config(), tmp_path, quiet)
        assert checkpoint.step_folders(tmp_path / "checkpoints") == [6, 3]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0] * 6 + [1, 1]


def test_a_step_that_is_skipped_amid_others_ends_nothing(tmp_path, monkeypatch):
    faked(monkeypatch, skipped=lambda step: step in (6, 7))
    train(config(), tmp_path, quiet)
    assert checkpoint.step_folders(tmp_path / "checkpoints") == [8, 3]  # not 6, which was skipped


def test_a_state_that_an_update_destroyed_is_not_saved(tmp_path, monkeypatch):
    faked(monkeypatch, destroyed=lambda step: step == 6)
    said = "the update of step 6 left params/.* not finite; .* from before it is step 3 in "
    with pytest.raises(DivergedError, match=said):
        train(config(), tmp_path, quiet)
    assert checkpoint.step_folders(tmp_path / "checkpoints") == [3]


def test_what_a_run_was_trained_with_must_be_there_bit_for_bit(tmp_path, monkeypatch):
    faked(monkeypatch)
    train(config(), tmp_path, quiet)
    vocabulary = tmp_path / "vocabulary.model"
    whole = vocabulary.read_bytes()
    vocabulary.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    longer = config(training__steps=9)
    for read in (lambda: train(longer, tmp_path, quiet), lambda: trained.load(tmp_path)):
        with pytest.raises(DataError, match="vocabulary.model is not what the model was trained"):
            read()
    vocabulary.unlink()  # and is made again from the captions
    with monkeypatch.context() as patched:
        patched.setitem(numerics.PINNED, "jax_random_seed_offset", 1)
        patched.setattr(numerics, "check", lambda: numerics.PINNED)
        with pytest.raises(ConfigError, match="jax_random_seed_offset=0 there, 1 here"):
            train(longer, tmp_path, quiet)
    assert int(train(longer, tmp_path, quiet).step) == 9 and vocabulary.read_bytes() == whole
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(StorageError, match="held checkpoints up to step 9, and none is there"):
        train(longer, tmp_path, quiet)


def test_a_vocabulary_that_no_checkpoint_knows_is_made_again(tmp_path, monkeypatch):
    faked(monkeypatch)
    (tmp_path / "vocabulary.model").write_bytes(b"cut short by a kill")
    assert int(train(config(), tmp_path, quiet).step) == 8


def test_a_state_that_no_device_holds_is_refused_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(chips, "memory", lambda device: 20_000)
    with pytest.raises(ConfigError, match=r"takes .* kB of each device, which has 20.0 kB; split"):
        train(config(), tmp_path, quiet)
    assert not (tmp_path / "checkpoints").exists()


def test_a_bucket_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="mount the bucket"):
        train(config(), Path("gs://bucket/run"), quiet)
    assert not list(tmp_path.iterdir())


def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_where_memory_runs_out_is_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(train_module, "generate", exhausted)
        with pytest.raises(ConfigError, match="does not hold the sample grid"):
            drawn = config(log__samples_every=2, log__sample_prompts=("a circle",))
            train(drawn, tmp_path / "grid", quiet)
    monkeypatch.setattr(hosts, "compile_on_all", lambda program, *given: exhausted)
    with pytest.raises(ConfigError, match="does not hold the state of training"):
        train(config(), tmp_path / "state", quiet)


def test_what_the_backward_pass_computes_again_may_change_between_runs(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    again = config(model__remat="block", model__fit__unroll=2, training__steps=9)
    lines = []
    assert int(train(again, tmp_path, lines.append).step) == 9
    assert any("resuming at step 8" in line for line in lines)


def test_two_runs_cannot_share_a_folder(tmp_path):
    with hosts.claim_folder(tmp_path), pytest.raises(ConfigError, match="in use by process"):
        train(config(), tmp_path, quiet)


def test_a_lock_of_other_bytes_is_one_line(tmp_path):
    with hosts.claim_folder(tmp_path):
        (tmp_path / "lock").write_bytes(b"\xff\n\0" * 1000)
        with pytest.raises(ConfigError, match="in use by .*") as error:
            train(config(), tmp_path, quiet)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
        (tmp_path / "lock").write_bytes(b"")
        with pytest.raises(ConfigError, match="in use by another process"):
            train(config(), tmp_path, quiet)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to"):
        train(config(), tmp_path / "file" / "run", quiet)


def test_a_trace_that_starts_after_the_run_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match="--profile=9:10: the run has steps 1 to 8 left"):
        train(config(), tmp_path / "run", quiet, profile=range(9, 11))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "changes", "says"),
    [
        (ConfigError, {"model__fit__group": (2, 2, 3)}, "does not divide the padded video"),
        (
            ConfigError,
            {"model__fit__latents": 3},
            "model.fit.latents=3 must be a multiple of 2: try 4",
        ),
        (
            ConfigError,
            {"training__batch_size": 0},
            "training.batch_size=0 must be a whole number",
        ),
        (ConfigError, {"data__image_fraction": 0.3}, "image_fraction"),
        (ConfigError, {"diffusion__sigma_in": float("nan")}, "diffusion.sigma_in=nan"),
        (
            ConfigError,
            {"optimizer__name": "lion"},
            "optimizer.name='lion' must be one of lamb",
        ),
        (
            ConfigError,
            {"optimizer__b2": 1.0},
            "optimizer.b2=1.0 must be a number from 0 to 0.99",
        ),
        (
            ConfigError,
            {"optimizer__warmup_steps": 8},
            "must be below training.steps=8; give --config.optimizer.warmup_steps too",
        ),
        (ConfigError, {"data__path": "clips"}, "add --config.data.source=folder"),
        (ConfigError, {"mesh__data": 3}, "give sizes whose product is 8"),
        (ConfigError, {"mesh__fsdp": 8, "training__batch_size": 12}, "nearest that does is"),
        (ConfigError, {"data__source": "folder"}, "needs --config.data.path"),
        (DataError, {"data__source": "folder", "data__path": "/no/such"}, "/no/such"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_made(
    tmp_path, error, changes, says
):
    with pytest.raises(error) as caught:
        train(config(**changes), tmp_path / "run", quiet)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
