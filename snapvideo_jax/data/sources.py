"""Captioned videos and pictures in a folder, read as a pure function of (seed, sample number).

Nothing outside the folder is opened, whatever its manifest or its links say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import listing, order, reading
from snapvideo_jax.data.choice import Clip, ClipSpec, Size
from snapvideo_jax.data.listing import Captions
from snapvideo_jax.errors import DataError
from snapvideo_jax.files.tar import Member

MAX_SUBSTITUTES = 20  # more bad files in a row are no bad luck but a bad folder

Rows = tuple[tuple[str, Captions], ...]  # (path relative to the root, captions)
Example = tuple[UInt8[np.ndarray, "T H W 3"], str, float, Size]
T = TypeVar("T")


class Drawn(NamedTuple):
    """A training example, and the name of what it comes from."""

    clip: Clip
    caption: str
    name: str

    def example(self) -> Example:
        """Returns what the pipeline reads."""
        return self.clip.frames, self.caption, self.clip.interval, self.clip.size


@dataclass(frozen=True)
class FolderSource:
    """The captioned files of one folder; `open_folder` makes it.

    Attributes:
      root: the folder.
      videos: (path relative to the root, captions) of each video, at least one.
      images: likewise for pictures; may be empty.
      fingerprint: hash over names, sizes and captions; other data have another one.
      members: where in tar shards the files lie, by path; none for files by themselves.
    """

    root: Path
    videos: Rows
    images: Rows
    fingerprint: str
    members: Mapping[str, Member] = field(default_factory=dict)

    def place(self, name: str) -> str | Member:
        """Returns where a file lies."""
        return self.members[name] if self.members else str(self.root / name)

    def size(self, name: str) -> int:
        """Returns the bytes of a file."""
        return self.members[name].size if self.members else (self.root / name).stat().st_size

    def captions(self) -> list[str]:
        """Returns every caption, in the order of the files, videos first."""
        rows = (*self.videos, *self.images)
        return [caption for _, captions in rows for caption in texts(captions)]

    def draw(
        self,
        g: int,
        *,
        image: bool,
        seed: int,
        spec: ClipSpec,
        report_bad: Callable[[str, str], None],
        read: Callable[[reading.Request], Clip] = reading.read,
    ) -> Drawn:
        """Draws training example `g`: the same bytes for the same arguments, on any host.

        Another file, chosen by (seed, g, attempt), stands in for one that cannot be used, so the
        order of all other files stays as it is.

        Args:
          g: global sample number.
          image: whether a still is due: T equal frames of a picture, or of one frame of a video
            where the folder has no pictures.
          seed: of the run.
          spec: size and frame rates of the clip.
          report_bad: called with path and reason for each file that could not be used.
          read: reads one file, here or in a process of its own.

        Raises:
          DataError: 21 files in a row were unusable.
        """
        rows = self.images if image and self.images else self.videos
        kind = "clip" if not image else "picture" if self.images else "frame"

        def read_row(row: int, stream: str) -> Drawn:
            name, captions = rows[row]
            clip = read(reading.Request(kind, self.place(name), spec, seed, g, stream))
            caption = choose_caption(texts(captions), seed, g)
            return Drawn(shown_throughout(clip, spec) if image else clip, caption, name)

        return first_usable(
            read_row,
            g,
            image=image,
            seed=seed,
            count=len(rows),
            report_bad=lambda row, reason: report_bad(rows[row][0], reason),
            place=self.root,
        )


def shown_throughout(still: Clip, spec: ClipSpec) -> Clip:
    """Returns T equal frames of a still."""
    return still._replace(frames=np.repeat(still.frames, spec.num_frames, axis=0))


def texts(captions: Captions) -> Sequence[str]:
    """Returns the captions of a file, of which there is at least one."""
    return (captions,) if isinstance(captions, str) else captions


def choose_caption(captions: Sequence[str], seed: int, g: int) -> str:
    """Returns the caption that sample g shows."""
    if len(captions) == 1:
        return captions[0]
    return captions[int(order.generator(seed, g, "caption").integers(len(captions)))]


def first_usable(
    read: Callable[[int, str], T],
    g: int,
    *,
    image: bool,
    seed: int,
    count: int,
    report_bad: Callable[[int, str], None],
    place: str | Path,
) -> T:
    """Returns what `read` makes of the row that sample g shows, or of the first usable substitute.

    Args:
      read: called with a row in range(count) and the name of this attempt's random numbers;
        raises DataError where the row cannot be used.
      g: global sample number.
      image: whether a still is due.
      seed: of the run.
      count: number of rows.
      report_bad: called with row and reason for each row that could not be used.
      place: where the rows are, for messages.

    Raises:
      DataError: 21 rows in a row were unusable.
    """
    stream, reason = "still" if image else "clip", ""
    for attempt in range(MAX_SUBSTITUTES + 1):
        row = _row(seed, g, attempt=attempt, count=count)
        try:
            return read(row, f"{stream} {attempt}")
        except DataError as error:
            reason = str(error)
            report_bad(row, reason)
    raise DataError(
        f"{place}: {MAX_SUBSTITUTES + 1} files in a row are unusable, the last: {reason}"
    )


def _row(seed: int, g: int, attempt: int, count: int) -> int:
    """Returns the row that sample g shows at first, and at each further attempt.

    Substitutes come in an order of their own, so that those of one sample all differ.
    """
    if attempt == 0:
        return order.index_of(g, count, seed)
    key = int(order.generator(seed, g, "substitutes").integers(2**62))
    return int(order.permute(np.array([(attempt - 1) % count]), count, key)[0])


def open_folder(path: str | Path) -> FolderSource:
    """Lists a folder of captioned videos and pictures, without decoding any.

    A list, where there is one, decides alone. `manifest.jsonl` has one row a line, {"video":
    "relative/path.mp4", "caption": "..."} or {"image": "relative/path.jpg", "caption": "..."}; a
    file may have several rows, and a row "captions": ["...", "..."], of which one is drawn each
    time. `manifest.csv` has the columns path and caption, or WebVid's. `index.jsonl` lists members
    of tar shards (tar_index.py). Without a list the rows are all videos (.mp4 .mov .webm .mkv .avi)
    and pictures (.png .jpg .jpeg .webp) below the folder, sorted; the caption of `name.mp4` stands
    in `name.txt` beside it. Captions are UTF-8; an empty one means "no text".

    Raises:
      DataError: no such folder, no video in it, or a list that `listing.entries` refuses.
    """
    root, rows, members = Path(path), {"video": [], "image": []}, {}
    fingerprint = listing.Fingerprint()
    for entry in listing.entries(root):
        fingerprint.add(entry)
        rows[entry.kind].append((entry.name, entry.captions))
        if entry.member is not None:
            members[entry.name] = entry.member
    if not rows["video"]:
        raise DataError(
            f"{root}: no video in it; add {' '.join(listing.VIDEO_SUFFIXES)} files, each with "
            "name.txt, or rows to the list that is there"
        )
    return FolderSource(
        root,
        videos=tuple(rows["video"]),
        images=tuple(rows["image"]),
        fingerprint=fingerprint.hexdigest(),
        members=members,
    )
