"""launch.train as one process of a job, run twice: stopped by a signal, and then to its end.

  python tests/hosts_worker.py RECORDS [flags of launch.train]

Process 1 sends itself SIGTERM as it draws the batch of step STOP. Each process writes what it fed
and a draw of noise to RECORDS, and exits as the stopped run does.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from snapvideo_jax import build, keys, train
from snapvideo_jax.data import pipeline
from snapvideo_jax.errors import Preempted
from snapvideo_jax.parallel import hosts
from snapvideo_jax.parallel.mesh import batch_sharding

STOP = 3
NOISE = (8, 2, 16, 16, 3)


def record(lines, feed=pipeline.Feed.__next__):
    """Feed.__next__ that also notes a digest of each row."""

    def following(self):
        batch = feed(self)
        rows = zip(*(batch[name] for name in sorted(batch)), strict=True)
        digests = (hashlib.sha256(b"".join(x.tobytes() for x in row)).hexdigest() for row in rows)
        lines.append(list(digests))
        return batch

    return following


def noise(mesh):
    """The noise of step 5 as it is drawn under jit, split over the mesh's devices."""
    draw = lambda: jax.random.normal(keys.streams(0, 5, ("eps",))["eps"], NOISE)
    return jax.jit(draw, out_shardings=batch_sharding(mesh))()


def twice(records, train=train.train):
    """train.train that goes on after it was preempted, as the same command would."""
    lines = []
    following = record(lines)

    def stopping(self):
        if len(lines) == STOP - 1 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return following(self)

    def both(config, workdir, log, **options):
        pipeline.Feed.__next__ = stopping
        stopped = None
        try:
            train(config, workdir, log, **options)
        except Preempted as error:
            stopped = error
        train(config, workdir, log, **options)
        shards = noise(build.training_mesh(config)).addressable_shards
        shards = {str(shard.index[0].start): shard.data for shard in shards}
        np.savez(records / f"noise.{jax.process_index()}.npz", **shards)
        (records / f"rows.{jax.process_index()}.json").write_text(json.dumps(lines))
        # The one that leaves first ends the other, which may be slower.
        multihost_utils.sync_global_devices("both have written")
        raise stopped or RuntimeError("the signal stopped nothing")

    return both


def once(make):
    """`make` that is called once for each first argument: both runs share what is compiled."""
    results = {}

    def remembered(first, *more):
        if str(first) not in results:
            results[str(first)] = make(first, *more)
        return results[str(first)]

    return remembered


if __name__ == "__main__":
    train.train = twice(Path(sys.argv.pop(1)))
    build.train_program, hosts.compile_on_all = (
        once(build.train_program),
        once(hosts.compile_on_all),
    )
    runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
