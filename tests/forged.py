"""Checkpoints as a broken device would have saved them: one bit is wrong, all digests are right."""

import shutil

import jax
import numpy as np
import orbax.checkpoint

from snapvideo_jax.training import checkpoint, restore
from snapvideo_jax.trees import path_name


def flip_bit(run, step, leaf, element=0, bit=0):
    """Saves the checkpoint of `step` anew, with one bit of a float32 leaf flipped."""
    folder = run / "checkpoints"
    meta = restore.step_meta(folder, step)
    leaves = dict(restore.host_leaves(folder, step))
    leaves[leaf] = leaves[leaf].copy()
    leaves[leaf].reshape(-1).view(np.uint32)[element] ^= 1 << bit
    stored = orbax.checkpoint.PyTreeCheckpointHandler().metadata(folder / str(step) / "state").tree
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.numpy.asarray(leaves[path_name(path)]), stored
    )
    shutil.rmtree(folder / str(step))
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1000, keep_every=0)
    checkpoints.save(step, tree, meta)
    checkpoints.close()
