"""What Orbax alone does not promise: every flipped bit is seen, and a resume walks back."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax.errors import StorageError
from snapvideo_jax.parallel.mesh import make_mesh
from snapvideo_jax.training import checkpoint, leaf_digests, restore
from tests.mutations import mutations
from tests.test_storage import fill

ROOT = Path(__file__).parent.parent.parent


def mesh(data, fsdp):
    return make_mesh({"data": data, "fsdp": fsdp, "group": 1, "tensor": 1}, jax.devices())


def tree(mesh, seed=0):
    rng = np.random.default_rng(seed)
    wide = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    narrow = NamedSharding(mesh, PartitionSpec())
    return {
        "ema": {"kernel": jax.device_put(rng.normal(size=(64, 64)).astype(np.float32), wide)},
        "params": {
            "kernel": jax.device_put(rng.normal(size=(64, 64)).astype(np.float32), wide),
            "half": jax.device_put(jnp.arange(6, dtype=jnp.bfloat16), narrow),
        },
        "step": jax.device_put(jnp.int32(seed), narrow),
    }


def abstract(of):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1, 2 and 3 on a 2 x 4 mesh."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder, keep_last=3, keep_every=0)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(mesh(2, 4), step), {"config": {"a": 1}})
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def newest(folder, log=lambda line: None, shape=(2, 4)):
    target = abstract(tree(mesh(*shape)))
    return restore.newest(folder, target, log)


def flip_bit(folder, rng):
    """Flips one bit in the largest array file of a step."""
    files = [p for p in (folder / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
    path = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content) // 4, len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))


def test_the_newest_step_comes_back_bit_for_bit_with_its_shardings(folder):
    restored = newest(folder)
    assert restored.step == 3 and restore.newest_meta(folder)["config"] == {"a": 1}
    assert_same(restored.state, tree(mesh(2, 4), 3))
    assert restored.state["params"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize("shape", [(8, 1), (1, 8)])
def test_another_mesh_reads_the_same_bits(folder, shape):
    assert_same(newest(folder, shape=shape).state, tree(mesh(2, 4), 3))


def test_small_arrays_on_many_devices_are_saved_without_a_program_for_each(tmp_path):
    state, events = tree(mesh(8, 1)), []
    leaf_digests.of(state)  # its program is there from now on
    note = lambda name, seconds, **about: events.append(name)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep_last=3, keep_every=0)
        checkpoints.save(1, state, {})
        checkpoints.close()
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert not [name for name in events if "compile" in name]


def test_a_part_is_restored_alone(folder):
    target = {"ema": abstract(tree(mesh(2, 4)))["ema"]}
    restored = restore.newest(folder, target, print)
    assert list(restored.state) == ["ema"]
    assert_same(restored.state["ema"], tree(mesh(2, 4), 3)["ema"])


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_is_noticed_and_the_step_before_is_used(folder, seed):
    said = []
    flip_bit(folder / "3", np.random.default_rng(seed))
    restored = newest(folder, said.append)
    assert restored.step == 2 and len(said) == 1 and "ignoring checkpoint 3" in said[0]
    assert_same(restored.state, tree(mesh(2, 4), 2))


def test_an_empty_or_foreign_folder_is_passed_over(folder):
    (folder / "9").mkdir()
    (folder / "notes").mkdir()
    (folder / "3" / "meta" / "metadata").write_text("{}")
    said = []
    assert newest(folder, said.append).step == 2
    assert [line.split()[2] for line in said] == ["9", "3"]


def test_a_run_whose_checkpoints_are_all_bad_never_starts_anew(folder):
    for step in (1, 2, 3):
        flip_bit(folder / str(step), np.random.default_rng(step))
    with pytest.raises(StorageError, match="no usable checkpoint .* checkpoint 3 .* checkpoint 1"):
        newest(folder)
    assert checkpoint.step_folders(folder) == [3, 2, 1]


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path / "nothing") is None
    assert restore.newest_meta(tmp_path / "nothing") is None


def test_a_folder_that_says_it_is_of_another_step_is_passed_over(folder):
    (folder / "3").rename(folder / "7")
    said = []
    assert newest(folder, said.append).step == 2
    assert said == ["ignoring checkpoint 7 says that it is of step 3"]
    assert restore.newest_meta(folder)["step"] == 2


def test_an_array_that_orbax_does_not_list_is_missed_by_name(folder):
    """A bit flipped in a name there: Orbax restores what it knows, and leaves out the rest."""
    listed = folder / "3" / "state" / "_METADATA"
    listed.write_text(listed.read_text().replace('"key": "half"', '"key": "halg"'))
    said = []
    assert newest(folder, said.append).step == 2
    assert said == ["ignoring checkpoint 3 is incomplete: its list of arrays has no params/half"]


def test_meta_data_that_cannot_be_read_are_passed_over_and_never_none(folder):
    (folder / "3" / "meta" / "metadata").write_text("[]")
    (folder / "2" / "meta" / "metadata").unlink()
    assert restore.newest_meta(folder)["step"] == 1
    with pytest.raises(StorageError, match="checkpoint 2 is incomplete"):
        restore.step_meta(folder, 2)
    (folder / "1" / "meta" / "metadata").write_text("{")
    with pytest.raises(StorageError, match="no usable checkpoint .* checkpoint 3 .* checkpoint 1"):
        restore.newest_meta(folder)


@pytest.mark.parametrize("part", ["meta", "state"])
def test_a_checkpoint_out_of_reach_is_not_passed_over(folder, monkeypatch, part):
    """An older one would be taken, and the newest set aside."""
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    lines, before = [], sorted(folder.iterdir())

    def unread(*args, **kwargs):
        raise stale if part == "meta" else ValueError(f"UNKNOWN: Error reading d/0: {stale}")

    if part == "meta":
        monkeypatch.setattr(Path, "read_bytes", unread)
    else:
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", unread)
    with pytest.raises(StorageError, match="cannot be read: .*Stale file handle.* is mounted"):
        newest(folder, lines.append)
    assert (lines, sorted(folder.iterdir())) == ([], before)


def test_a_folder_out_of_reach_is_not_taken_for_an_empty_one(folder, monkeypatch):
    def listdir(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(StorageError, match="cannot read .*: Stale file handle"):
        newest(folder)


def test_two_hundred_mutations_of_the_meta_data_are_noticed_or_change_nothing(folder):
    path, before = folder / "3" / "meta" / "metadata", restore.newest_meta(folder)
    for damaged in mutations(path.read_bytes(), 200):
        path.write_bytes(damaged)
        assert restore.newest_meta(folder)["step"] == 2 or restore.newest_meta(folder) == before


def test_meta_data_of_the_first_format_are_read(folder):
    path = folder / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["seal"]
    path.write_text(json.dumps(meta | {"format": 1}))
    assert newest(folder).step == 3 and restore.newest_meta(folder)["text"] == ""
    path.write_text(json.dumps(meta))  # of this format, and not sealed
    assert newest(folder).step == 2


@pytest.mark.parametrize("name", ["07", "+7", "7.0", "²", "٣", "-7", "1_0", " 7", "7e3", "9" * 30])
def test_names_that_only_look_like_numbers_are_no_steps(folder, name):
    (folder / name).mkdir()
    assert checkpoint.step_folders(folder) == [3, 2, 1]


def test_where_steps_ever_existed_a_run_never_starts_from_nothing(folder):
    checkpoint.check_never_saved(folder.with_name("other"))
    shutil.copytree(folder, folder.with_name("other") / "checkpoints")
    folder = folder.with_name("other") / "checkpoints"
    checkpoint.check_never_saved(folder)
    checkpoints = checkpoint.Checkpoints(folder, keep_last=3, keep_every=0)
    checkpoints.save(4, tree(mesh(2, 4), 4), {})
    checkpoints.close()
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match="held checkpoints up to step 4, and none is there"):
        checkpoint.check_never_saved(folder)
    (folder.parent / "saved.json").write_text("{")
    with pytest.raises(StorageError, match="held checkpoints of some step"):
        checkpoint.check_never_saved(folder)
    (folder.parent / "saved.json").unlink()
    (folder / "bad-3-0").mkdir(parents=True)
    with pytest.raises(StorageError, match="that did not verify .bad-3-0."):
        checkpoint.check_never_saved(folder)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_jumps_at_each_look_while_a_step_is_saved_changes_nothing(
    tmp_path, monkeypatch, jump
):
    checkpoints = checkpoint.Checkpoints(tmp_path / "c", keep_last=3, keep_every=0)
    clock, calls = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: clock() + jump * next(calls))
    checkpoints.save(1, tree(mesh(2, 4), 1), {})
    checkpoints.close()
    assert next(calls) > 3
    monkeypatch.undo()
    assert newest(tmp_path / "c").step == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_leaves_that_are_not_finite_are_named(value):
    state = tree(mesh(2, 4))
    assert leaf_digests.not_finite(state) == []
    kernel = state["params"]["kernel"]
    state["params"]["kernel"] = kernel.at[63, 63].set(value)
    assert leaf_digests.not_finite(state) == ["params/kernel"]


def test_steps_that_failed_are_set_aside_not_deleted(folder):
    (folder / "9").mkdir()
    checkpoints = checkpoint.Checkpoints(folder, keep_last=3, keep_every=0)
    checkpoints.set_aside(3)
    checkpoints.save(9, tree(mesh(2, 4), 9), {})
    checkpoints.close()
    assert (folder / "bad-9-0").is_dir()
    assert newest(folder).step == 9


def test_retention_keeps_the_last_and_the_milestones(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_every=2)
    for step in range(1, 7):
        checkpoints.save(step, {"x": jnp.float32(step)}, {})
    checkpoints.close()
    assert checkpoint.step_folders(tmp_path) == [6, 5, 4, 2]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_the_digest_sees_every_flipped_bit(dtype):
    x = np.asarray(jnp.arange(24, dtype=dtype).reshape(4, 6))
    whole = int(leaf_digests.digest(jnp.asarray(x)))
    for bit in range(8 * x.nbytes):
        content = bytearray(x.tobytes())
        content[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(content), x.dtype).reshape(x.shape)
        assert int(leaf_digests.digest(jnp.asarray(changed))) != whole


def test_the_digest_sees_swapped_elements():
    x = jnp.arange(6.0).reshape(2, 3)
    assert int(leaf_digests.digest(x)) != int(leaf_digests.digest(x[::-1]))


def saving(folder):
    """(checkpoints, lines that they log) of a folder, with steps of 100 kB."""
    lines = []
    return checkpoint.Checkpoints(folder, 9, 0, lines.append), lines


def big(step):
    return {"x": jnp.asarray(np.random.default_rng(step).normal(size=25_000), jnp.float32)}


def wait_for(checkpoints, condition):
    """Looks as the loop does, after each step, until something holds."""
    for _ in range(200):
        checkpoints.check()
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("nothing was noticed")


def unlike_the_whole(folder):
    return [path.name for path in folder.iterdir() if not path.name.isdigit()]


@pytest.mark.parametrize("leave", [0, 40 << 10, 110 << 10])  # the last is for the state alone
def test_a_save_on_a_full_disk_is_noticed_and_leaves_nothing_and_the_next_one_works(disk, leave):
    folder = disk(1 << 20)
    checkpoints, lines = saving(folder / "checkpoints")
    checkpoints.save(1, big(1), {})
    wait_for(checkpoints, lambda: not checkpoints._manager.is_saving_in_progress())
    ballast = fill(folder, leave)
    checkpoints.save(2, big(2), {})
    wait_for(checkpoints, lambda: lines)
    assert "could not save step 2 in " in lines[0] and "the disk is full (the state" in lines[0]
    assert lines[0].endswith("the newest checkpoint is step 1; training goes on")
    assert unlike_the_whole(folder / "checkpoints") == []
    ballast.unlink()
    checkpoints.save(3, big(3), {})
    checkpoints.close()
    assert len(lines) == 1 and checkpoint.step_folders(folder / "checkpoints") == [3, 1]
    restored = restore.newest(folder / "checkpoints", big(3), print)
    assert_same(restored.state, big(3))


def test_three_failed_saves_in_a_row_end_the_run_and_two_do_not(disk):
    folder = disk(1 << 20)
    checkpoints, lines = saving(folder / "checkpoints")
    fails = lambda step: checkpoints.save(step, big(step), {})
    ballast = fill(folder)
    fails(1), fails(2)
    ballast.unlink()
    checkpoints.save(3, big(3), {})
    wait_for(checkpoints, lambda: checkpoints._saving is None)
    fill(folder)
    fails(4), fails(5)
    says = "3 saves in a row failed: could not save step 6 .*newest checkpoint is step 3$"
    with pytest.raises(StorageError, match=says):
        fails(6)
    checkpoints.close()
    assert len(lines) == 4 and unlike_the_whole(folder / "checkpoints") == []


def test_the_last_save_of_all_must_not_fail(disk):
    folder = disk(1 << 20)
    checkpoints, lines = saving(folder / "checkpoints")
    fill(folder)
    checkpoints.save(1, big(1), {})
    with pytest.raises(StorageError, match="could not save step 1 .*no checkpoint is there$"):
        checkpoints.close()


def test_what_must_not_be_older_than_a_checkpoint_is_written_before(tmp_path):
    checkpoints, lines = saving(tmp_path / "checkpoints")

    def before():
        raise StorageError("cannot write metrics.jsonl")

    checkpoints.save(1, big(1), {}, before)
    assert "could not save step 1 " in lines[0] and "cannot write metrics.jsonl" in lines[0]
    checkpoints.save(2, big(2), {})
    checkpoints.close()
    assert checkpoint.step_folders(tmp_path / "checkpoints") == [2]


def test_what_a_kill_left_uncommitted_is_removed_at_the_next_start(folder):
    (folder / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    checkpoint.Checkpoints(folder, keep_last=3, keep_every=0).close()
    assert not (folder / "4.orbax-checkpoint-tmp").exists()
    assert checkpoint.step_folders(folder) == [3, 2, 1]


KILLED = """
import os, sys
from pathlib import Path
import jax.numpy as jnp
from snapvideo_jax.training import checkpoint, leaf_digests, restore

class Killed:
    def __getattr__(self, name):
        os.kill(os.getpid(), 9)

folder = Path(sys.argv[1])
checkpoints = checkpoint.Checkpoints(folder, keep_last=2, keep_every=0)
for step in (1, 2):
    checkpoints.save(step, {"x": jnp.float32(step)}, {})
    checkpoints._settle()
deleter = "_checkpoint_deleter"
assert hasattr(checkpoints._manager, deleter)
setattr(checkpoints._manager, deleter, Killed())
checkpoints.save(3, {"x": jnp.float32(3)}, {})
checkpoints.close()
"""


@pytest.mark.faults
def test_a_kill_between_a_commit_and_the_deletion_that_follows_loses_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", KILLED, str(folder)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.step_folders(folder) == [3, 2, 1]  # the new one is whole, the old one there
    target = abstract({"x": jax.device_put(jnp.float32(0), jax.devices()[0])})
    assert restore.newest(folder, target, print).state["x"] == 3
    checkpoints = checkpoint.Checkpoints(folder, keep_last=2, keep_every=0)
    checkpoints.save(4, {"x": jnp.float32(4)}, {})
    checkpoints.close()
    assert checkpoint.step_folders(folder) == [4, 3]
