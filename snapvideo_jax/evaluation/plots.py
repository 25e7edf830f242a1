"""Scores of a sweep on paper: a line a factor, against the field that changes.

matplotlib is imported where a plot is drawn.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]  # the swept fields, and `oracle` as a report has it

FIELDS = {"steps": "steps of the sampler", "guidance": "guidance weight w"}
# Color and width, thick ones first: lines that lie on top of each other all show.
FACTORS = {
    "color": ("#e0b020", 9.0),
    "speed": ("#b07aa1", 6.5),
    "direction": ("#4e9bd3", 4.3),
    "shape": ("#2e9e5b", 2.5),
    "all": ("#1a1a1a", 1.0),
}


def png(rows: Sequence[Row]) -> bytes:
    """The `figure` of a sweep as a PNG file."""
    content = io.BytesIO()
    figure(rows).savefig(content, format="png", dpi=110)
    return content.getvalue()


def figure(rows: Sequence[Row]) -> "Figure":
    """Scores against the steps if they change, else against the guidance; seen and held out.

    rows: one a combination, in the order of the sweep; with both fields swept each guidance weight
    has axes of its own.
    """
    from matplotlib.figure import Figure

    field = "steps" if len({row["steps"] for row in rows}) > 1 else "guidance"
    other = "guidance" if field == "steps" else "steps"
    panels = list(dict.fromkeys(row[other] for row in rows))
    drawn = Figure(figsize=(1.4 + 4.6 * len(panels), 3.9), layout="constrained")
    for axes, value in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, [row for row in rows if row[other] == value], field)
        axes.set_title(f"{FIELDS[other]}: {value:g}", fontsize=10)
    drawn.legend(handles=axes.get_legend_handles_labels()[0], loc="outside right upper")
    return drawn


def _panel(axes: "Axes", rows: Sequence[Row], field: str) -> None:
    rows = sorted(rows, key=lambda row: row[field])
    places = [row[field] for row in rows]
    for factor, (color, width) in FACTORS.items():
        seen = [row["oracle"][factor] for row in rows]
        held_out = [row["oracle"]["held_out"][factor] for row in rows]
        axes.plot(places, seen, color=color, linewidth=width, label=factor, marker=".")
        axes.plot(places, held_out, color=color, linewidth=width, marker=".", linestyle=(0, (2, 2)))
    axes.plot([], [], "k-", label="seen in training")
    axes.plot([], [], "k", linestyle=(0, (2, 2)), label="held out")
    if field == "steps":
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places])
    axes.set(xlabel=FIELDS[field], ylabel="right by the oracle", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0%}")
    axes.grid(color="#dddddd")
