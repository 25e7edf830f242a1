"""How long a save keeps the loop of the demo waiting, and what 50 saves do to the host's memory.

python -m tests.training.saving_cost
"""

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
STEPS = 6  # between saves, so that each has ended when the next one begins
WARM = 5  # saves that memory is compared with the last one's


def main() -> None:
    """Trains on a blank batch and saves in turns; prints medians and what memory grew by."""
    config = shapes.get_config()
    program = build.train_program(config, vocabulary_size=64, devices=jax.devices()[:1])
    state, batch = program.init(), build.blank_batch(config, config.training.batch_size)
    steps, blocks, sizes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = checkpoint.Checkpoints(Path(folder) / "saved", keep_last=2, keep_every=0)
        for save in range(SAVES):
            for _ in range(STEPS):
                before = time.monotonic()
                state, metrics = program.step(state, batch)
                jax.block_until_ready(metrics)
                steps.append(time.monotonic() - before)
                checkpoints.check()
            before = time.monotonic()
            assert not leaf_digests.not_finite(state)
            checkpoints.save(save, state, {"config": {}})
            blocks.append(time.monotonic() - before)
            sizes.append(resident())
        checkpoints.close()
    step, block = statistics.median(steps[STEPS:]), statistics.median(blocks[WARM:])
    print(f"a step {1e3 * step:.0f} ms; a save keeps it waiting {1e3 * block:.0f} ms")
    print(f"memory after {WARM} saves {sizes[WARM - 1]} MB, after {SAVES} {sizes[-1]} MB")


def resident() -> int:
    """Returns the megabytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


if __name__ == "__main__":
    main()
