"""Checkpoints as a broken device would have saved them: one bit is wrong, all digests are right."""

import shutil

import jax
import numpy as np

from snapvideo_jax.training import checkpoint


def flip_bit(run, step, leaf, element=0, bit=0):
    """Saves the checkpoint of `step` anew, with one bit of a float32 leaf flipped."""
    folder = run / "checkpoints"
    meta = checkpoint.step_meta(folder, step)
    leaves = dict(checkpoint.host_leaves(folder, step))
    leaves[leaf] = leaves[leaf].copy()
    leaves[leaf].reshape(-1).view(np.uint32)[element] ^= 1 << bit
    tree = {}
    for name, value in leaves.items():
        *parents, last = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    optimizer = tree.get("opt_state", {})  # the names in it are places in a tuple
    if optimizer:
        tree["opt_state"] = [optimizer.get(str(n), {}) for n in range(1 + max(map(int, optimizer)))]
    shutil.rmtree(folder / str(step))
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1000, keep_every=0)
    checkpoints.save(step, jax.tree.map(jax.numpy.asarray, tree), meta)
    checkpoints.close()
