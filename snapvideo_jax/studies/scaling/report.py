"""The scaling study as tables: one row a network, and its loss by noise level."""

from collections.abc import Mapping, Sequence
from typing import Any

from snapvideo_jax.benchmark.report import Table, load_line, markdown_section, source_line

TITLE = "Loss of networks by size"
NAMES = {
    "fit": "FIT",
    "unet": "U-Net",
    "dit": "DiT",
    "dit_factorised": "factorised DiT",
}


def tables(study: Mapping[str, Any]) -> list[Table]:
    """Returns size, cost and loss of each network, then its loss in each bin of ln sigma."""
    source, load = source_line(study, "measured"), load_line(study, "measured")
    header = ("network", "parameters", "with text encoder", "GFLOP a video")
    header += ("ms a step, median", "from, to", "steps", "seconds", "held-out loss")
    lines = [_line(row) for row in study["rows"]]
    bins = [
        (name(row), *(f"{loss:.4f}" for loss in row["held_out_loss_by_bin"]))
        for row in study["rows"]
    ]
    return [
        Table(title="Networks", source=source, load=load, header=header, lines=lines),
        Table(
            title="Held-out loss by ln sigma",
            source=source,
            load="",  # a loss does not depend on it
            header=("network", *labels(study)),
            lines=bins,
        ),
    ]


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name(row),
        f"{row['parameters']:,}",
        f"{row['parameters'] + row['text_encoder_parameters']:,}",
        f"{row['gflop_per_video']:.4f}",
        f"{row['ms_per_step']:.1f}",
        f"{row['ms_per_step_min']:.1f} to {row['ms_per_step_max']:.1f}",
        f"{row['steps']:,}",
        f"{row['seconds']:.0f}",
        f"{row['held_out_loss']:.4f}",
    )


def name(row: Mapping[str, Any]) -> str:
    """Returns how tables and pictures call a network: "FIT 2"."""
    return f"{NAMES[row['family']]} {row['size']}"


def labels(study: Mapping[str, Any]) -> list[str]:
    """Returns the names of the bins: below 2.0, 2.0 to 2.5, ..., above 5.0."""
    edges: Sequence[str] = [f"{edge:.1f}" for edge in study["bin_edges"]]
    inner = [f"{low} to {high}" for low, high in zip(edges, edges[1:], strict=False)]
    return [f"below {edges[0]}", *inner, f"above {edges[-1]}"]


def markdown(study: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Returns scaling.md: what was done, the tables, and links to the pictures beside it."""
    summary = (
        f"{_amount(study)} The loss is training's (0 is best, 1 is that of F = 0 on white data), "
        f"of the EMA, on {study['held_out_videos']} videos of compositions that training never "
        "shows, with the same noise for all; a FIT starts from the latents of a first pass. GFLOP "
        "are of one call of the network."
    )
    parts = [f"# {TITLE}", summary]
    for table in tables(study):
        parts += markdown_section(table, study["command"])
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _amount(study: Mapping[str, Any]) -> str:
    """Says how long the networks trained."""
    steps, batch = study["steps"], study["batch"]
    if study["equal"] == "steps":
        return (
            f"Each network took {steps} steps of {batch} videos, the same {steps * batch:,} for "
            "all, in turns."
        )
    return (
        f"The slowest network took {steps} steps of {batch} videos, each of the others as many as "
        "fit into its seconds, by the time of a few steps before; all in turns, from the first "
        "video on."
    )
