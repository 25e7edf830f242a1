"""Shows what a step of training sees, on any number of hosts: a contact sheet and a table of rows.

  python -m launch.prepare show --config=configs/shapes.py --step=123456 --hosts=4 --json=rows.json

Batches are functions of (seed, step), so this draws the same examples as the run did. --config is
the run's, with the same data; config.json of its folder says which that was. The step is that of
metrics.jsonl: 1 is the first.

--out is a sheet of at most 64 rows, evenly spread over the batch, and the table shows these. --json
gets all rows of each host, {"step", "seed", "hosts": [{"rows": [...]}]}; a row is
  row             in the global batch         start           seconds into the source
  example         file or record              frame_interval  seconds; 0: a still
  kind            "image" or "video"          source_size     rows and columns of its pixels
  sample          its number g                sha256          of the pixels, 16 digits
  caption         before it is dropped        crop            [row, column] of the cut, from 0
  text_dropped    in the first pass, and in                   (top, left) to 1; null: the middle
                  the second one              flipped         whether left and right are swapped
Exit codes: 0 done, 2 bad flags or config, 3 bad data, 5 a file cannot be written.
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from launch import data_config, entry, number_flags, screen
from snapvideo_jax import build, fields, storage
from snapvideo_jax.data import order
from snapvideo_jax.data.sources import Drawn
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.files import video
from snapvideo_jax.kinds import Whole

entry.define_config()
STEP = number_flags.define("step", None, fields.STEPS, "The step to show.")
flags.mark_flag_as_required("step")
HOSTS = number_flags.define("hosts", 1, Whole(1, 65_536), "Hosts that share each batch.")
OUT = flags.DEFINE_string("out", "step.png", "The contact sheet.")
JSON = flags.DEFINE_string("json", None, "File for the rows of each host.")
ON_SHEET = 64  # rows at most


class Row(NamedTuple):
    """A row of the global batch: its number, that of its sample, and what was drawn for it.

    text_dropped: in the first and in the second pass of the training step.
    """

    number: int
    sample: int
    is_image: bool
    drawn: Drawn
    text_dropped: tuple[bool, bool]


def run() -> None:
    """Draws the batch of --step, and writes what is in it."""
    config = data_config.checked()
    batch_size, hosts = config.training.batch_size, HOSTS.value
    if batch_size % hosts:
        raise ConfigError(f"--hosts={hosts} do not share a batch of {batch_size} rows evenly")
    source = build.source(config, screen.replacements())
    images = order.image_rows(batch_size, config.data.image_fraction)
    rows, report = [], screen.progress("rows")
    dropped = np.stack(build.text_dropout(config, STEP.value - 1), axis=1).tolist()
    for number in range(batch_size):
        # The batch that makes step n is number n - 1.
        sample, is_image = order.sample_of(STEP.value - 1, number, batch_size, images)
        drawn = source.draw(sample, is_image)
        rows.append(Row(number, sample, is_image, drawn, tuple(dropped[number])))
        report(number + 1, batch_size)
    if JSON.value:
        content = {"step": STEP.value, "seed": config.seed, "hosts": _by_host(rows, hosts)}
        storage.write(JSON.value, json.dumps(content, indent=1).encode() + b"\n")
    spread = np.linspace(0, batch_size - 1, min(batch_size, ON_SHEET)).round().astype(int)
    _show([rows[number] for number in spread], batch_size // hosts)


def _by_host(rows: list[Row], hosts: int) -> list[dict[str, Any]]:
    """Returns the rows of each host, in the order in which it makes them."""
    share = len(rows) // hosts
    return [
        {"rows": [_facts(row) for row in rows[host * share : (host + 1) * share]]}
        for host in range(hosts)
    ]


def _facts(row: Row) -> dict[str, Any]:
    clip, caption, name = row.drawn
    return {
        "row": row.number,
        "example": name,
        "kind": "image" if row.is_image else "video",
        "sample": row.sample,
        "caption": caption,
        "text_dropped": list(row.text_dropped),
        "start": clip.start,
        "frame_interval": clip.interval,
        "source_size": list(clip.size),
        "crop": clip.framing.crop and list(clip.framing.crop),
        "flipped": clip.framing.flip,
        "sha256": hashlib.sha256(clip.frames.tobytes()).hexdigest()[:16],
    }


def _show(rows: list[Row], share: int) -> None:
    """Prints a line for each row, and draws them on one sheet."""
    titles = []
    for row in rows:
        clip, caption, name = row.drawn
        rate = f"{1 / clip.interval:.4g} frames/s" if clip.interval else "still"
        screen.say(
            f"host {row.number // share} row {row.number}: {name} at {clip.start:.3f} s, {rate}, "
            f"{clip.size[0]} x {clip.size[1]}{_changes(row)}: {caption or '(no text)'}"
        )
        titles.append(f"{row.number}: {caption or '(no text)'} ({rate})")
    frames = [row.drawn.clip.frames for row in rows]
    scale = max(1, video.MIN_SIDE // min(frames[0].shape[1:3]))
    video.write_png(OUT.value, video.contact_sheet(frames, titles, scale=scale))
    screen.say(f"sheet: {OUT.value}")


def _changes(row: Row) -> str:
    """Says where a row was cut, whether it flipped, and which pass sees no text."""
    framing, passes = row.drawn.clip.framing, ("first", "second")
    dropped = [name for name, gone in zip(passes, row.text_dropped, strict=True) if gone]
    words = [f"cut at {framing.crop[0]:.2f}, {framing.crop[1]:.2f}"] if framing.crop else []
    words += ["flipped"] * framing.flip
    words += [f"no text in the {' and the '.join(dropped)} pass"] if dropped else []
    return "".join(f", {word}" for word in words)


if __name__ == "__main__":
    entry.run(run)
