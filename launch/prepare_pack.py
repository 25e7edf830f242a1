"""Packs videos and pictures at training size, so that training decodes no video.

  python -m launch.prepare pack --config=configs/fit_500m.py --config.data.path=DIR \\
      --out=PACKED/clips/1.0.0

reads the folder DIR as training does, and stores every frame of every video by itself: scaled and
cut to data.height x data.width, as JPEG, or without loss as --encoding=png or raw (pixels). Clips
are drawn from it as from DIR: the same captions in the same order, the same frames. Train with
--config.data.source=tfds --config.data.path=PACKED/clips/1.0.0.

The folder is also a build of tensorflow-datasets (ArrayRecord): tfds.builder_from_directory opens
it, or tfds.builder("clips", data_dir="PACKED"). pack.json has a checksum for each shard.

Where one machine is not enough, several that mount the same folders pack a share each; the command
without --host then completes the build, whichever machine it runs on. Or a pipeline of Apache Beam
packs all, where it is installed: --beam=--runner=DirectRunner,--direct_num_workers=8.

  python -m launch.prepare pack ... --hosts=4 --host=0      and 1, 2, 3 on the others
  python -m launch.prepare pack ...

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
from snapvideo_jax.data import pack, pack_beam, packed, sources
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
HOSTS = number_flags.define("hosts", None, Whole(1, 65_536), "Machines that pack a share each.")
HOST = number_flags.define("host", None, Whole(0, 65_535), "Number of this one of them, from 0.")
BEAM = flags.DEFINE_list("beam", None, "Options of a pipeline of Apache Beam, which packs all.")


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
    packing = pack.Packing(
        height=config.data.height,
        width=config.data.width,
        aspect=config.data.aspect,
        encoding=ENCODING.value,
        quality=QUALITY.value,
        shard_rows=SHARD.value,
    )
    if BEAM.value is not None:
        entry.refuse_unread("no --beam", WORKERS)
        pack_shards = pack_beam.pipeline(BEAM.value)
    else:
        workers = WORKERS.value or len(os.sched_getaffinity(0))
        pack_shards = pack.processes(workers, screen.progress("files"))
    if HOSTS.value is None and HOST.value is None:
        _pack(config.data.path, packing, pack_shards)
    else:
        _pack_share(config.data.path, packing, pack_shards)


def _pack(path: str, packing: pack.Packing, pack_shards: pack.PackShards) -> None:
    """Packs what is not packed yet, completes the build, and says what it holds."""
    totals = pack.pack(sources.open_folder(path), OUT.value, packing, pack_shards)
    lines = [json.dumps({"path": name, "reason": why}) + "\n" for name, why in totals.unusable]
    storage.write(Path(OUT.value) / "bad_records.jsonl", "".join(lines).encode())
    _say(totals)


def _pack_share(path: str, packing: pack.Packing, pack_shards: pack.PackShards) -> None:
    """Packs the share of this machine."""
    host, hosts = HOST.value, HOSTS.value
    if host is None or hosts is None or host >= hosts:
        raise ConfigError(
            f"--hosts={hosts} --host={host}: give both, --host from 0 to one below --hosts"
        )
    source = sources.open_folder(path)
    pack.pack_share(source, OUT.value, packing, pack_shards, host=host, hosts=hosts)
    screen.say(
        f"done: share {host} of {hosts}; when all are, the same command without --hosts and --host "
        "completes the build"
    )


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
