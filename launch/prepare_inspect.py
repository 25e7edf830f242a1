"""Draws a page about a data set: sizes, lengths, frame rates, captions, and some of its clips.

  python -m launch.prepare inspect --config=configs/fit_500m.py --config.data.path=DIR \\
      --out=page.html

The page is one file for any browser. It is about --examples videos (and as many pictures, if the
run draws any) in the order of training: a random choice, the same on each call.

Exit codes: 0 done, 2 bad flags or config, 3 bad data, 5 --out cannot be written.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
from absl import flags

from launch import data_config, entry, number_flags, screen
from snapvideo_jax import build, storage
from snapvideo_jax.data import order
from snapvideo_jax.data.sources import Drawn
from snapvideo_jax.files import video
from snapvideo_jax.kinds import Whole

entry.define_config()
OUT = flags.DEFINE_string("out", "data.html", "The page.")
EXAMPLES = number_flags.define(
    "examples", 200, Whole(1, 1_000_000), "Videos to look at, and pictures."
)
ON_SHEET, BARS = 24, 20  # clips; bars of a histogram
WIDTH, HEIGHT = 420, 110  # pixels of a histogram


def run() -> None:
    """Draws examples of the data that --config names, and writes the page."""
    config = data_config.checked()
    bad: dict[str, str] = {}
    source = build.source(config, bad.__setitem__)
    images = order.image_rows(config.training.batch_size, config.data.image_fraction)
    kinds = [("videos", False)] * (images < config.training.batch_size)
    kinds += [("stills", True)] * (images > 0)
    sections, report = [], screen.progress("examples")
    for part, (title, is_image) in enumerate(kinds):
        drawn = []
        for g in range(EXAMPLES.value):
            drawn.append(source.draw(g, is_image))
            report(part * EXAMPLES.value + g + 1, len(kinds) * EXAMPLES.value)
        sections.append(_section(title, drawn, has_lengths=not is_image))
    head = f"{config.data.source} {config.data.path}".strip()
    storage.write(OUT.value, _page(head, sections, bad).encode())
    screen.say(f"page: {OUT.value}, {len(bad)} unusable files")


def _section(title: str, drawn: Sequence[Drawn], has_lengths: bool) -> str:
    """Returns what the page says about videos, or about stills."""
    sources = {d.name: d.clip.source for d in drawn}
    words = [len(caption.split()) for caption in {d.caption for d in drawn}]
    plots = [histogram("words in a caption", words)]
    if has_lengths:
        plots += [
            histogram("seconds of a file", [s.duration for s in sources.values()]),
            histogram("frames per second of a file", [s.frame_rate for s in sources.values()]),
        ]
    sizes = Counter(f"{s.height} x {s.width}" for s in sources.values())
    rows = "".join(f"<tr><td>{size}<td>{n}" for size, n in sizes.most_common(10))
    empty = sum(not d.caption for d in drawn)
    return (
        f"<h2>{len(drawn)} {title} of {len(sources)} files</h2>{''.join(plots)}"
        f"<table><tr><th>pixels<th>files{rows}</table>"
        f"<p>{empty} examples without text.</p>{_sheet(drawn[:ON_SHEET])}"
    )


def histogram(title: str, values: Sequence[float]) -> str:
    """Returns a drawing of how often values occur, with least, median and greatest below it."""
    counts, edges = np.histogram(values, bins=BARS)
    bar = WIDTH / BARS
    tall = HEIGHT * counts / counts.max()
    bars = "".join(
        f'<rect x="{k * bar:.1f}" y="{HEIGHT - tall[k]:.1f}" width="{bar - 1:.1f}" '
        f'height="{tall[k]:.1f}"><title>{edges[k]:.4g} to {edges[k + 1]:.4g}: {n}</title></rect>'
        for k, n in enumerate(counts)
    )
    least, middle, most = np.quantile(values, [0, 0.5, 1])
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}">{bars}</svg><figcaption>{title}: '
        f"{least:.4g} to {most:.4g}, median {middle:.4g}</figcaption></figure>"
    )


def _sheet(drawn: Sequence[Drawn]) -> str:
    """Returns clips with their captions as one picture."""
    frames = [d.clip.frames for d in drawn]
    scale = max(1, video.MIN_SIDE // min(frames[0].shape[1:3]))
    sheet = video.contact_sheet(frames, [d.caption or "(no text)" for d in drawn], scale=scale)
    content = io.BytesIO()
    sheet.save(content, "png")
    return f'<img src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'


def _page(head: str, sections: Sequence[str], bad: dict[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(path)}<td>{html.escape(why)}" for path, why in sorted(bad.items())
    )
    unusable = f"<h2>{len(bad)} unusable files</h2><table>{rows}</table>" if bad else ""
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(head)}</title>'
        "<style>body{font:15px sans-serif;margin:2em}img{max-width:100%}rect{fill:#36a}"
        "figure{display:inline-block;margin:1em}td,th{padding:0 1em 0 0;text-align:left}</style>"
        f"<h1>{html.escape(head)}</h1>{''.join(sections)}{unusable}\n"
    )


if __name__ == "__main__":
    entry.run(run)
