"""Builds of tensorflow-datasets as training data, read in our order by random access.

Nothing is downloaded and no build is written. Records are read one at a time and only the frames of
the clip are decoded. tensorflow itself is not imported.
"""

import hashlib
import json
import re
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax.data import order, packed, tfds_fields
from snapvideo_jax.data.choice import ClipSpec, draw_clip, draw_framing, draw_still
from snapvideo_jax.data.sources import (
    Drawn,
    choose_caption,
    first_usable,
    shown_throughout,
)
from snapvideo_jax.data.tfds_fields import Fields, Open, Recording
from snapvideo_jax.errors import ConfigError, DataError, reason, unreadable

_LARGE_BLOCK = 31 * 2**20  # bytes; blocks of 32 MiB and more are always returned


class Split(NamedTuple):
    """A split, or a slice of one, by random access."""

    name: str
    records: Sequence[bytes]


@dataclass(frozen=True)
class TfdsSource:
    """The videos and pictures of one build; `open_build` makes it.

    Attributes:
      place: the build, for messages.
      videos: split of videos; None in a build of pictures.
      images: split of pictures; None where stills are frames of videos.
      open_record: what a record shows.
      caption_file: where the captions of all records are; None: in the records alone.
      fingerprint: hash over names, sizes and checksums; other data have another one.
    """

    place: str
    videos: Split | None
    images: Split | None
    open_record: Open
    caption_file: Path | None
    fingerprint: str

    def captions(self) -> list[str]:
        """Returns every caption, videos first; reads all records of a build that others made."""
        if self.caption_file is not None:
            with self.caption_file.open() as lines:
                return [caption for line in lines for caption in json.loads(line)]
        splits = [split for split in (self.videos, self.images) if split is not None]
        captions = []
        for split in splits:
            for row in range(len(split.records)):
                captions += self._open(split, row).captions
        return captions

    def draw(
        self,
        g: int,
        *,
        image: bool,
        seed: int,
        spec: ClipSpec,
        report_bad: Callable[[str, str], None],
    ) -> Drawn:
        """Draws training example `g`, as `sources.FolderSource.draw` does.

        Of several captions one is drawn.

        Raises:
          DataError: 21 records in a row were unusable.
        """
        split = (self.images or self.videos) if image else self.videos
        if split is None:
            raise DataError(f"{self.place}: holds no videos")
        draw = draw_still if image else draw_clip
        framing = draw_framing(spec, seed, g)

        def read(row: int, stream: str) -> Drawn:
            recording, rng = self._open(split, row), order.generator(seed, g, stream)
            clip = draw(recording.info, spec, rng, recording.decode, framing)
            clip = shown_throughout(clip, spec) if image else clip
            caption = choose_caption(recording.captions, seed, g)
            return Drawn(clip, caption, recording.name or f"{split.name}[{row}]")

        return first_usable(
            read,
            g,
            image=image,
            seed=seed,
            count=len(split.records),
            report_bad=lambda row, why: report_bad(f"{split.name}[{row}]", why),
            place=self.place,
        )

    def _open(self, split: Split, row: int) -> Recording:
        try:
            return self.open_record(split.records[row])
        except (RuntimeError, OSError, ValueError) as error:  # how ArrayRecord says it is damaged
            problem = f"record {row} of {split.name} cannot be read: {reason(error)}"
            raise unreadable(f"{self.place}: {problem}", error) from error


def open_build(path: str, *, split: str, images: str, fields: Fields, spec: ClipSpec) -> TfdsSource:
    """Opens a build; reads no record.

    Args:
      path: its folder, or name/config:version below TFDS_DATA_DIR or ~/tensorflow_datasets.
      split: of the videos; may be a slice, such as train[:90%].
      images: split of the pictures, where the build has it; else stills are frames of videos.
      fields: features of a build that others made.
      spec: of the clips that are drawn from it.

    Raises:
      ConfigError: a split, a slice or a feature that the build does not have, or frames that were
        packed otherwise than `spec` asks.
      DataError: no such build, one without random access, or a damaged one.
    """
    import tensorflow_datasets as tfds

    builder = _builder(path)
    info = builder.info
    stored = info.file_format
    if stored != tfds.core.FileFormat.ARRAY_RECORD:
        name = stored.value if stored else "something else"
        raise DataError(
            f"{path} is stored as {name}, without random access; convert it: "
            f"python -m launch.prepare convert --build={builder.data_path} --out=DIR"
        )
    features, folder = dict(info.features), Path(builder.data_path)
    own = tfds_fields.is_packed(features)
    if own:
        _check_packing(path, features, folder, spec)
        open_record: Open = tfds_fields.open_packed(features)
    else:
        open_record = tfds_fields.open_foreign(features, fields, spec.height, spec.width)
    _allow_open_files(info, split, images)
    videos = _split(builder, split)
    if not own and tfds_fields.holds_pictures(features, fields):
        videos, pictures = None, videos
    else:
        pictures = _split(builder, images) if _base(images) in info.splits else None
    captions = folder / packed.CAPTIONS
    _reuse_memory()
    return TfdsSource(
        place=path,
        videos=videos,
        images=pictures,
        open_record=open_record,
        caption_file=captions if own else None,
        fingerprint=_fingerprint(info, folder, (split, images), None if own else fields),
    )


def _base(split: str) -> str:
    """Returns the split that a slice is of: train[:90%] -> train."""
    return re.split(r"\W", split, maxsplit=1)[0]


def _builder(path: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        if Path(path).is_dir():
            return tfds.builder_from_directory(path)
        builder = tfds.builder(path, try_gcs=False)
    except Exception as error:  # tensorflow-datasets raises whatever a broken file leads to
        why = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{path}: is neither the folder of a build nor name/config:version of one: {why}"
        ) from error
    if not builder.is_prepared():
        raise DataError(
            f"{path}: is not built below {Path(builder.data_path).parent}; build it with tfds "
            "build --file_format=array_record, or give the folder of the build"
        )
    return builder


def _split(builder: Any, split: str) -> Split:
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split, deserialize_method=raw)
    except (ValueError, AssertionError, KeyError) as error:
        splits = ", ".join(builder.info.splits)
        raise ConfigError(
            f"data.tfds.split={split}: {reason(error)} (the build has {splits})"
        ) from error
    except (OSError, RuntimeError) as error:
        raise DataError(f"{builder.data_path}: {reason(error)}") from error
    if not len(records):
        raise ConfigError(f"data.tfds.split={split}: is empty")
    return Split(split, records)


def _check_packing(path: str, features: Any, folder: Path, spec: ClipSpec) -> None:
    """Raises ConfigError where the frames of a build of ours are not those that `spec` asks for."""
    form = packed.frame_format(features)
    if (form.height, form.width) != (spec.height, spec.width):
        raise ConfigError(
            f"{path} holds frames of {form.height} x {form.width} pixels, and data.height, "
            f"data.width are {spec.height}, {spec.width}; pack the videos at that size"
        )
    if spec.random_crop:
        raise ConfigError(
            f"data.random_crop=True: the frames of {path} were cut when they were packed"
        )
    try:
        aspect = json.loads((folder / packed.HEADER).read_bytes()).get("aspect", "crop")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / packed.HEADER}: cannot be read: {reason(error)}") from error
    if aspect != spec.aspect:
        raise ConfigError(
            f"{path} was packed with data.aspect={aspect}, and it is {spec.aspect}; pack the "
            "videos anew"
        )


def _allow_open_files(info: Any, *splits: str) -> None:
    """Lets this process hold every shard open; raises DataError where the system forbids it."""
    shards = sum(info.splits[name].num_shards for name in map(_base, splits) if name in info.splits)
    needed = shards + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(f"{info.full_name} has {shards} shards; allow {needed} files: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _reuse_memory() -> None:
    """Lets the C library use the memory of one record for the next.

    Until a block as large was freed, glibc returns each one to the system, and fetching its pages
    anew takes two thirds of the time of a read. The pages of this block are never touched.
    """
    bytes(_LARGE_BLOCK)


def _fingerprint(info: Any, folder: Path, splits: tuple[str, str], fields: Fields | None) -> str:
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    facts = [
        info.full_name,
        splits,
        fields,
        [(name, s.shard_lengths, int(s.num_bytes)) for name, s in sorted(info.splits.items())],
        digest(folder / "features.json"),
        digest(folder / packed.HEADER),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
