"""Copies a build of tensorflow-datasets from TFRecord to ArrayRecord, which has random access."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapvideo_jax import storage
from snapvideo_jax.data import tfds_build
from snapvideo_jax.errors import ConfigError, DataError, StorageError, reason


def convert(source: str, folder: str | Path, report: Callable[[int, int], None]) -> int:
    """Copies each record as it is, in its order; returns how many there are.

    Shards that a former call completed are not copied again.

    Args:
      source: folder of a build that is stored as tfrecord.
      folder: of the new build; made where there is none.
      report: called with shards done and shards in all.

    Raises:
      ConfigError: the build is not stored as tfrecord.
      DataError: there is no such build, or a record is damaged.
      StorageError: the folder cannot be written.
    """
    import tensorflow_datasets as tfds

    storage.refuse_remote(source)
    try:
        builder = tfds.builder_from_directory(source)
    except Exception as error:  # tensorflow-datasets raises whatever a broken file leads to
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"{source}: is not the folder of a build: {why}") from error
    info = builder.info
    stored = info.file_format
    if stored != tfds.core.FileFormat.TFRECORD:
        name = stored.value if stored else "something else"
        raise ConfigError(f"{source} is stored as {name}; only tfrecord is converted")
    folder = storage.make_folder(folder)
    splits = {split: [Path(path) for path in info.splits[split].filepaths] for split in info.splits}
    total, done, lengths = sum(map(len, splits.values())), 0, {}
    for split, paths in splits.items():
        lengths[split] = []
        for number, path in enumerate(paths):
            target = tfds_build.shard_path(folder, info.name, split, number, len(paths))
            lengths[split].append(_copy(path, target))
            done += 1
            report(done, total)
    tfds_build.write_metadata(folder, info.name, info.features, lengths)
    return sum(records for shards in lengths.values() for records, _ in shards)


def _copy(source: Path, target: Path) -> tuple[int, int]:
    """Copies one shard; returns its records and their bytes."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    try:
        if target.exists():
            reader = ArrayRecordReader(str(target))
            sizes = [len(record) for record in reader.read_all()]
            reader.close()
            return len(sizes), sum(sizes)
        unfinished, sizes = target.with_name(f".{target.name}.tmp"), []
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        for record in _read(source):
            writer.write(record)
            sizes.append(len(record))
        writer.close()
        os.replace(unfinished, target)
        return len(sizes), sum(sizes)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write {target}: {reason(error)}") from error


def _read(source: Path) -> Any:
    """Yields the records of a TFRecord file; raises DataError at a damaged one."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    try:
        yield from tf.data.TFRecordDataset(str(source)).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise DataError(f"{source}: cannot be read: {reason(error)}") from error
