"""One flipped bit in any file that a run reads changes no bit of what comes out of it."""

import os
import shutil
import signal

import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.errors import Preempted, UserError
from snapvideo_jax.train import train
from snapvideo_jax.training import checkpoint
from tests import test_train
from tests.test_train import assert_same, config, quiet

FLIPS = 20  # of each kind of file
REST = {"checkpoint__every_steps": 8}  # of a run that goes on: it saves at its end alone
KINDS = {
    "arrays": "checkpoints/*/state/**/*",
    "meta": "checkpoints/*/meta/*",
    "vocabulary": "vocabulary.model",
    "newest step": "saved.json",
    "metrics": "metrics.jsonl",
    "ledger": "goodput.json",
    "config": "config.json",
    "lock": "lock",
}

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True, scope="module")
def compile_once():
    """All runs here share their compiled step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "train_program", test_train.remembered)
        yield


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after two checkpoints, and resumes."""
    folder = tmp_path_factory.mktemp("stopped")

    def stop(line):
        if line.startswith("step 4/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(config(checkpoint__every_steps=1, log__every_seconds=1e-6), folder, stop)
    assert len(checkpoint.step_folders(folder / "checkpoints")) == 2
    return folder


@pytest.fixture(scope="module")
def whole(stopped, tmp_path_factory):
    """(final state, metrics) of the run when nothing is flipped."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(stopped, folder, dirs_exist_ok=True)
    return train(config(**REST), folder, quiet), (folder / "metrics.jsonl").read_bytes()


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed_or_changes_nothing(stopped, whole, tmp_path, kind):
    draw = np.random.default_rng(sum(kind.encode()))
    refused = 0
    for k in range(FLIPS):
        folder = tmp_path / str(k)
        shutil.copytree(stopped, folder)
        files = [path for path in folder.glob(KINDS[kind]) if path.is_file()]
        flip(draw.choice([path for path in files if path.stat().st_size]), draw)
        try:
            state = train(config(**REST), folder, quiet)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert_same(state, whole[0])
        if kind != "metrics":
            assert (folder / "metrics.jsonl").read_bytes() == whole[1]
        shutil.rmtree(folder)
    assert refused < FLIPS or kind == "vocabulary"
