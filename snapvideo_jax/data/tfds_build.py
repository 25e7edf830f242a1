"""Writes what makes a folder of ArrayRecord files a build that tensorflow-datasets opens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snapvideo_jax.errors import StorageError, reason

SUFFIX = "array_record"


def shard_path(folder: Path, name: str, split: str, number: int, count: int) -> Path:
    """Returns the path of one of `count` shards of a split of the build `name`."""
    return folder / f"{name}-{split}.{SUFFIX}-{number:05d}-of-{count:05d}"


def write_metadata(
    folder: Path, name: str, layout: Any, splits: Mapping[str, Sequence[tuple[int, int]]]
) -> None:
    """Writes dataset_info.json and features.json beside the shards.

    Args:
      folder: of the build; its last part is the version, if it looks like one.
      name: of the build.
      layout: tfds.features.FeaturesDict of the records.
      splits: records and bytes of each shard, by split; empty splits are left out.

    Raises:
      StorageError: the files cannot be written.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    folder = folder.resolve()
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=name, filetype_suffix=SUFFIX
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[records for records, _ in shards],
            num_bytes=sum(size for _, size in shards),
            filename_template=template.replace(split=split),
        )
        for split, shards in splits.items()
        if shards
    ]
    try:
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=layout,
            split_infos=infos,
            filename_template=template,
            check_data=False,
        )
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {reason(error)}") from error
