"""Copies a build of tensorflow-datasets from TFRecord to ArrayRecord, which training reads.

  python -m launch.prepare convert --build=DIR --out=OUT

DIR is the folder with dataset_info.json. Records are copied as they are; OUT is the same data set.
Ctrl-C loses the shard in work; the same command goes on.
Exit codes: 0 done, 2 bad flags, 3 no such build or damaged records, 5 --out cannot be written.
"""

from absl import flags

from launch import entry, screen
from snapvideo_jax.data.convert import convert

BUILD = flags.DEFINE_string(
    "build", None, "Folder of the build, stored as tfrecord.", required=True
)
OUT = entry.define_folder("out", "Folder for the new build: .../NAME/1.0.0; created if absent.")


def run() -> None:
    """Converts the build in --build."""
    records = convert(BUILD.value, OUT.value, screen.progress("shards"))
    screen.say(f"done: {records} records in {OUT.value}")


if __name__ == "__main__":
    entry.run(run)
