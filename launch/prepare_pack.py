"""Packs videos and pictures at training size, so that training decodes no video.

  python -m launch.prepare pack --config=configs/fit_500m.py --config.data.path=DIR \\
      --out=PACKED/clips/1.0.0

reads the folder DIR as training does, and stores every frame of every video by itself: scaled and
cut to data.height x data.width, as JPEG, or without loss as --encoding=png or raw (pixels). Clips
are drawn from it as from DIR: the same captions in the same order, the same frames. Train with
--config.data.source=tfds --config.data.path=PACKED/clips/1.0.0.

The folder is also a build of tensorflow-datasets (ArrayRecord): tfds.builder_from_directory opens
it, or tfds.builder("clips", data_dir="PACKED"). pack.json has a checksum for each shard.

Files that cannot be decoded are listed at the end and in bad_records.jsonl; training replaces them.
Ctrl-C loses the shards in work; the same command goes on.
Exit codes: 0 done, 2 bad flags or config, 3 bad data, 5 --out cannot be written.
"""

import json
import os
from pathlib import Path

from absl import flags

from launch import data_config, entry, number_flags, screen
from snapvideo_jax import storage
from snapvideo_jax.data import pack, packed, sources
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.kinds import Whole
from snapvideo_jax.units import size_text

entry.define_config()
OUT = entry.define_folder("out", "Folder for the build: .../NAME/1.0.0; created if absent.")
ENCODING = flags.DEFINE_enum("encoding", "jpeg", packed.ENCODINGS, "png and raw lose nothing.")
QUALITY = number_flags.define("quality", 95, Whole(1, 100), "Of JPEG.")
SHARD = number_flags.define("shard", 1000, Whole(1, 1_000_000), "Files in a shard.")
WORKERS = number_flags.define(
    "workers", None, Whole(1, 4096), "Processes at a time; default: one a core."
)


def run() -> None:
    """Packs the folder that --config names."""
    config = data_config.checked()
    if config.data.source != "folder":
        raise ConfigError(f"data.source={config.data.source}: only source folder can be packed")
    if config.data.random_crop:
        raise ConfigError(
            "data.random_crop=True: frames are cut in the middle when they are packed"
        )
    if ENCODING.value != "jpeg":
        entry.refuse_unread("--encoding=jpeg", QUALITY)
    totals = pack.pack(
        sources.open_folder(config.data.path),
        OUT.value,
        pack.Packing(
            height=config.data.height,
            width=config.data.width,
            aspect=config.data.aspect,
            encoding=ENCODING.value,
            quality=QUALITY.value,
            shard_rows=SHARD.value,
        ),
        workers=WORKERS.value or len(os.sched_getaffinity(0)),
        report=screen.progress("files"),
    )
    lines = [json.dumps({"path": name, "reason": why}) + "\n" for name, why in totals.unusable]
    storage.write(Path(OUT.value) / "bad_records.jsonl", "".join(lines).encode())
    _say(totals)


def _say(totals: pack.Totals) -> None:
    """Prints size and loss."""
    share = totals.bytes / totals.source_bytes
    screen.say(
        f"done: {totals.videos} videos and {totals.pictures} pictures, {totals.frames} frames in "
        f"{OUT.value}: {size_text(totals.bytes)}, {share:.3g} times the files"
    )
    if totals.loss is None:
        screen.say("loss: none")
    else:
        mean, worst = totals.loss
        screen.say(
            f"loss: peak signal-to-noise ratio {mean:.1f} dB on average, {worst:.1f} dB least"
        )
    if totals.unusable:
        name, why = totals.unusable[0]
        screen.say(f"{len(totals.unusable)} files are unusable, listed in bad_records.jsonl: {why}")


if __name__ == "__main__":
    entry.run(run)
