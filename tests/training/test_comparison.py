"""Two runs are compared bit by bit, and a difference is named with its leaf and its step."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.errors import ConfigError, UserError
from snapvideo_jax.training import checkpoint, comparison, fed_rows
from tests import forged

KERNEL = "params/network/head/kernel"
META = {"config": {"mesh": {"data": -1}, "model": {"remat": "none"}}}


def run_of(folder, steps=4):
    """What a run of `steps` leaves: a checkpoint each second step, metrics, rows of data."""
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep_last=9, keep_every=0)
    for step in range(1, steps + 1):
        batch = {"video": np.full((3, 2), step), "text_ids": np.arange(3)}
        fed_rows.record(folder, step, batch)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
        if step % 2 == 0:
            kernel = jnp.arange(6.0).reshape(2, 3) + step
            tree = {"params": {"network": {"head": {"kernel": kernel}}}, "step": jnp.int32(step)}
            checkpoints.save(step, tree, META)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("straight"))


@pytest.fixture
def resumed(straight, tmp_path):
    return shutil.copytree(straight, tmp_path / "resumed")


def test_a_run_is_the_same_as_its_like(straight, resumed):
    fed_rows.record(resumed, 3, {"video": np.full((3, 2), 3), "text_ids": np.arange(3)})  # again
    assert comparison.runs(straight, resumed, 2) == []
    assert comparison.replay(straight, resumed, 2, 4) == []


@pytest.mark.parametrize("bit", [0, 22, 31])
def test_one_flipped_bit_is_named_with_its_leaf_and_step(straight, resumed, bit):
    forged.flip_bit(resumed, 4, KERNEL, element=4, bit=bit)
    (difference,) = comparison.runs(straight, resumed, 2)
    assert difference.step == 4
    assert difference.what.startswith(
        f"{KERNEL} differs in 1 of 6 numbers, first at [1, 1]: 8.0 and"
    )
    (difference,) = comparison.replay(straight, resumed, 2, 4)
    assert difference.step == 4 and difference.what.startswith(f"{KERNEL} differs: its digest")


def test_the_first_step_that_differs_is_named(straight, resumed):
    forged.flip_bit(resumed, 4, KERNEL)
    path = resumed / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.5", "0.25"))
    fed_rows.record(resumed, 3, {"video": np.full((3, 2), 7), "text_ids": np.arange(3)})
    differences = comparison.runs(straight, resumed, 2)
    assert {step for step, _ in differences} == {2, 3, 4}
    assert comparison.summary(differences) == (
        "step 2: metrics.jsonl has loss=0.5 and 0.25; and in 2 more places"
    )


def test_what_is_missing_is_a_difference(straight, resumed):
    (resumed / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (resumed / "rows.0.jsonl").unlink()
    differences = comparison.runs(straight, resumed, 2)
    assert sum("lacks its line" in what for _, what in differences) == 3
    assert sum("rows.0.jsonl lacks it" in what for _, what in differences) == 4
    assert comparison.metrics(straight, resumed, range(1, 5), all_there=False) == []


def test_leaves_that_only_one_run_has_are_named(straight, resumed):
    shutil.rmtree(resumed / "checkpoints" / "4")
    checkpoints = checkpoint.Checkpoints(resumed / "checkpoints", keep_last=9, keep_every=0)
    checkpoints.save(4, {"step": jnp.int32(4)}, META)
    checkpoints.close()
    assert comparison.states(straight, resumed, 4) == [(4, f"only one of the runs has {KERNEL}")]


def test_not_a_number_is_the_same_as_its_own_bits_and_other_zeros_are_not():
    values = np.array([np.nan, 0.0], np.float32)
    assert comparison._difference(values, values.copy()) == ""
    assert "1 of 2 numbers" in comparison._difference(values, np.array([np.nan, -0.0], np.float32))
    assert "in shape or type" in comparison._difference(values, values.astype(np.float64))


def test_a_line_that_a_kill_cut_spoils_no_other(resumed):
    path = resumed / "rows.0.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    fed_rows.record(resumed, 5, {"video": np.zeros((3, 2))})
    assert [step for step, _, _ in fed_rows.read(resumed)] == [1, 2, 3, 5]


def test_a_replay_needs_two_checkpoints_of_the_same_arithmetic(straight):
    assert comparison.next_step(straight, 2) == 4
    for step in (3, 4):
        with pytest.raises(ConfigError, match=f"--replay={step} needs .* there are: 2, 4"):
            comparison.next_step(straight, step)
    comparison.check_same_arithmetic(straight, 4, META["config"])
    other = {"mesh": {"data": 2}, "model": {"remat": "none"}}
    with pytest.raises(ConfigError, match="checkpoint 4 .* is of mesh.data=-1, and this is 2"):
        comparison.check_same_arithmetic(straight, 4, other)


def test_a_branch_holds_one_checkpoint_and_leaves_the_run_alone(straight, tmp_path):
    folder = tmp_path / "branch"
    for _ in range(2):  # as two processes do
        comparison.branch(straight, 2, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints"]
    assert checkpoint.step_folders(folder / "checkpoints") == [2]
    assert comparison.states(straight, folder, 2) == []


def test_a_kill_that_came_late_proves_nothing(straight):
    assert comparison.check_newest(straight, 4) == []
    with pytest.raises(UserError, match="the kill came late, after checkpoint 4"):
        comparison.check_newest(straight, 2)
