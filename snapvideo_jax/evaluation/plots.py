"""Plots of a sweep: each factor's score is a line over the field that changes.

matplotlib, which is only in requirements-test.txt, is imported where a plot is drawn.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SweepPoint = dict[str, Any]  # the swept fields, and `oracle` as a report has it

FIELDS = {"steps": "steps of the sampler", "guidance": "guidance weight w"}
# Color and width, thick lines first, so that lines on top of each other all show.
FACTORS = {
    "color": ("#e0b020", 9.0),
    "speed": ("#b07aa1", 6.5),
    "direction": ("#4e9bd3", 4.3),
    "shape": ("#2e9e5b", 2.5),
    "all": ("#1a1a1a", 1.0),
}


def png(points: Sequence[SweepPoint]) -> bytes:
    """Returns the `figure` of a sweep as a PNG file."""
    content = io.BytesIO()
    figure(points).savefig(content, format="png", dpi=110)
    return content.getvalue()


def figure(points: Sequence[SweepPoint]) -> "Figure":
    """Draws scores, seen and held out, over the steps if they change, else over the guidance.

    points: one a combination, in the order of the sweep. With both fields swept, each guidance
    weight has axes of its own.
    """
    from matplotlib.figure import Figure

    field = "steps" if len({point["steps"] for point in points}) > 1 else "guidance"
    other = "guidance" if field == "steps" else "steps"
    values = list(dict.fromkeys(point[other] for point in points))
    result = Figure(figsize=(1.4 + 4.6 * len(values), 3.9), layout="constrained")
    for axes, value in zip(result.subplots(1, len(values), squeeze=False)[0], values, strict=True):
        _panel(axes, [point for point in points if point[other] == value], field)
        axes.set_title(f"{FIELDS[other]}: {value:g}", fontsize=10)
    result.legend(handles=axes.get_legend_handles_labels()[0], loc="outside right upper")
    return result


def _panel(axes: "Axes", points: Sequence[SweepPoint], field: str) -> None:
    points = sorted(points, key=lambda point: point[field])
    x = [point[field] for point in points]
    for factor, (color, width) in FACTORS.items():
        seen = [point["oracle"][factor] for point in points]
        held_out = [point["oracle"]["held_out"][factor] for point in points]
        axes.plot(x, seen, color=color, linewidth=width, label=factor, marker=".")
        axes.plot(x, held_out, color=color, linewidth=width, marker=".", linestyle=(0, (2, 2)))
    axes.plot([], [], "k-", label="seen in training")
    axes.plot([], [], "k", linestyle=(0, (2, 2)), label="held out")
    if field == "steps":
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
    axes.set(xlabel=FIELDS[field], ylabel="right by the oracle", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0%}")
    axes.grid(color="#dddddd")
