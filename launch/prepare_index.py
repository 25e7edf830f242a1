"""Lists what lies where in a folder of WebDataset's tar shards, so that training reads any of it.

  python -m launch.prepare index --shards=DIR

reads every shard DIR/**/*.tar one time and writes DIR/index.jsonl: the size and SHA-256 of each
shard, and the offset, size and captions of each video and picture in it. Then DIR is a folder like
any other: --config.data.source=folder --config.data.path=DIR. Nothing is extracted.

The caption of NAME.mp4 is the member NAME.txt, or "caption" or "captions" of NAME.json. Links,
devices and paths that lead out of a folder refuse the shard, and so does compression (.tar.gz).

Ctrl-C, or a kill, loses the shards in work; the same command goes on. Where DIR/index.jsonl is
there already, the shards are compared with it, digests and all.
Exit codes: 0 done, 2 bad flags, 3 bad shards or others than indexed, 5 DIR cannot be written.
"""

import os

from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax.data import listing, tar_index
from snapvideo_jax.kinds import Whole
from snapvideo_jax.units import size_text

SHARDS = flags.DEFINE_string("shards", None, "Folder of the shards.", required=True)
WORKERS = number_flags.define(
    "workers", None, Whole(1, 4096), "Shards read at a time; default: one a core."
)


def run() -> None:
    """Indexes the shards that the flags name."""
    totals = tar_index.index(
        SHARDS.value,
        workers=WORKERS.value or len(os.sched_getaffinity(0)),
        report=screen.progress("shards"),
    )
    screen.say(
        f"done: {totals.videos} videos and {totals.pictures} pictures in {totals.shards} shards of "
        f"{size_text(totals.bytes)}, listed in {os.path.join(SHARDS.value, listing.INDEX)}"
    )


if __name__ == "__main__":
    entry.run(run)
