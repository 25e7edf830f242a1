"""What this version and earlier ones wrote is read by every later one, bit for bit.

tests/golden/checkpoint and tests/golden/export are written by

  python -m tests.training.test_golden FOLDER

into FOLDER; a new format gets a folder of its own beside them, and the old ones stay.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax.export import export_folder
from snapvideo_jax.training import checkpoint, restore, resume
from tests import tiny

GOLDEN = Path(__file__).parent.parent / "golden"
STEP = 7
META = {"data": "golden", "text": "", "numerics": {}}


def params(scale):
    kernel = scale * jnp.sin(jnp.arange(24.0)).reshape(2, 3, 4)
    return {"network": {"head": {"kernel": kernel, "bias": jnp.arange(4, dtype=jnp.bfloat16)}}}


def state():
    """A tree as a TrainState has it, small enough for the repository."""
    moments = {"mu": params(0.1), "nu": params(0.01), "count": jnp.int32(STEP)}
    return {
        "step": jnp.int32(STEP), "params": params(1.0), "ema": params(0.9), "opt_state": [moments],
    }  # fmt: skip


def abstract(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def bits(tree):
    return jax.tree.map(lambda x: (str(x.dtype), x.shape, np.asarray(x).tobytes()), tree)


def write(folder):
    checkpoints = checkpoint.Checkpoints(folder / "checkpoint", keep_last=1, keep_every=0)
    config = json.loads(tiny.get_config().to_json())
    checkpoints.save(STEP, state(), META | {"config": config})
    checkpoints.close()
    export_folder.write(folder / "export", config, STEP, params(0.9), None)


def test_the_golden_checkpoint_is_restored_bit_for_bit():
    folder = GOLDEN / "checkpoint"
    restored = restore.at_step(folder, STEP, abstract(state()))
    assert bits(restored.state) == bits(state())
    assert bits(dict(restore.host_leaves(folder, STEP))["step"]) == bits(jnp.int32(STEP))


def test_the_config_of_the_golden_checkpoint_is_still_the_same_experiment():
    """Fields that came after it are in resume.LATER_FIELDS, with the value that was theirs."""
    saved = restore.step_meta(GOLDEN / "checkpoint", STEP)
    meta = META | {"config": json.loads(tiny.get_config().to_json())}
    resume.check_same_experiment(GOLDEN, saved, meta)


def test_the_golden_export_is_read_bit_for_bit():
    folder = GOLDEN / "export"
    assert export_folder.read(folder).step == STEP
    loaded = export_folder.load_params(folder, abstract(params(0.9)))
    assert bits(loaded) == bits(params(0.9))


def test_golden_files_are_small():
    files = [p for name in ("checkpoint", "export") for p in (GOLDEN / name).rglob("*")]
    assert sum(p.stat().st_size for p in files if p.is_file()) < 100_000


if __name__ == "__main__":
    write(Path(sys.argv[1]))
