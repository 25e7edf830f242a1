"""How long a save keeps the loop of the demo waiting, and what 50 saves do to the host's memory.

python -m tests.training.saving_cost
"""

import ctypes
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax

from configs import shapes
from snapvideo_jax import build
from snapvideo_jax.training import checkpoint, leaf_digests

SAVES = 50
STEPS = 3  # between saves
WARM = 5  # saves until memory is as large as it stays


def main() -> None:
    """Trains on a blank batch and saves in turns; prints medians and what memory grew by."""
    config = shapes.get_config()
    program = build.train_program(config, vocabulary_size=64, devices=jax.devices()[:1])
    state, batch = program.init(), build.blank_batch(config, config.training.batch_size)
    steps, blocks, works, sizes = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = checkpoint.Checkpoints(Path(folder) / "saved", keep_last=2, keep_every=0)
        for save in range(SAVES):
            for _ in range(STEPS):
                before = time.monotonic()
                state, metrics = program.step(state, batch)
                jax.block_until_ready(metrics)
                steps.append(time.monotonic() - before)
            before, busy = time.monotonic(), time.thread_time()
            assert not leaf_digests.not_finite(state)
            checkpoints.save(save, state, {"config": {}})
            blocks.append(time.monotonic() - before)
            works.append(time.thread_time() - busy)
            checkpoints.steps()  # waits for the end of the save
            sizes.append(resident())
        checkpoints.close()
    step, block, work = (1e3 * statistics.median(each[WARM:]) for each in (steps, blocks, works))
    print(f"a step {step:.0f} ms; a save keeps it waiting {block:.0f} ms, {work:.0f} ms at work")
    print(f"memory after {WARM} saves {sizes[WARM - 1]} MB, after {SAVES} {sizes[-1]} MB")


def resident() -> int:
    """Returns the megabytes of memory that are in use, without what malloc keeps for later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


if __name__ == "__main__":
    main()
