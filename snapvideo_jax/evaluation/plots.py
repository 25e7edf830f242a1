"""Plots of a sweep: each factor's score over the field that changes, or of solvers over their cost.

matplotlib, which is only in requirements-test.txt, is imported where a plot is drawn.
"""

import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SweepPoint = dict[str, Any]  # the swept fields, and `oracle` as a report has it

COSTS = {
    "evaluations": "evaluations of the network a video",
    "seconds": "seconds a video",
}
SOLVERS = {"heun": "Heun", "euler": "Euler", "dpmpp_2m": "DPM-Solver++(2M)"}
EVERYWHERE = 1e6  # guidance_sigma_max of a config that guides at all noise levels
COLORS = ("#1f6fb4", "#d9541e", "#2e9e5b", "#8a4fb0", "#e0b020", "#7a7a7a")
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
    weight has axes of its own. Several solvers or intervals of guidance are drawn over their cost.
    """
    from matplotlib.figure import Figure

    if len({_sampler(point)[:3] for point in points}) > 1:
        return _over_cost(points)
    field = "steps" if len({point["steps"] for point in points}) > 1 else "guidance"
    other = "guidance" if field == "steps" else "steps"
    values = list(dict.fromkeys(point[other] for point in points))
    result = Figure(figsize=(1.4 + 4.6 * len(values), 3.9), layout="constrained")
    for axes, value in zip(result.subplots(1, len(values), squeeze=False)[0], values, strict=True):
        _panel(axes, [point for point in points if point[other] == value], field)
        axes.set_title(f"{FIELDS[other]}: {value:g}", fontsize=10)
    result.legend(handles=axes.get_legend_handles_labels()[0], loc="outside right upper")
    return result


def _sampler(point: SweepPoint) -> tuple[str, float, float, float]:
    """Returns what a line over cost has in common: solver, interval and weight of guidance."""
    interval = point["guidance_sigma_min"], point["guidance_sigma_max"]
    return point["solver"], *interval, point["guidance"]


def _over_cost(points: Sequence[SweepPoint]) -> "Figure":
    """Draws the score, all facts right, over evaluations and over the seconds that were measured.

    A line is a solver with an interval and a weight of guidance; its points are numbers of steps.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    costs = [cost for cost in COSTS if all(point[cost] is not None for point in points)]
    result = Figure(figsize=(2.6 + 4.6 * len(costs), 4.1), layout="constrained")
    for axes, cost in zip(result.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        for sampler, color in zip(dict.fromkeys(map(_sampler, points)), itertools.cycle(COLORS)):
            line = sorted((p for p in points if _sampler(p) == sampler), key=lambda p: p[cost])
            x = [point[cost] for point in line]
            _lines(axes, x, line, "all", color=color, label=_label(*sampler))
        _legend_of_lines(axes)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set(xlabel=COSTS[cost], ylabel="all right by the oracle", ylim=(-0.03, 1.03))
        axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0%}")
        axes.grid(color="#dddddd")
    handles = axes.get_legend_handles_labels()[0]
    result.legend(handles=handles, loc="outside lower center", ncols=2)
    return result


def _label(solver: str, low: float, high: float, weight: float) -> str:
    """Names a solver and its guidance; a bound that no noise level reaches is left out."""
    if not weight:
        return f"{SOLVERS[solver]}, no guidance"
    above = f" above sigma {low:g}" if low > 0 else ""
    up_to = f" up to sigma {high:g}" if high < EVERYWHERE else ""
    return f"{SOLVERS[solver]}, w {weight:g}{above}{up_to}"


def _lines(
    axes: "Axes", x: Sequence[float], points: Sequence[SweepPoint], factor: str, **style: Any
) -> None:
    """Draws the scores of a factor over x: a solid line of prompts seen, a dashed one held out."""
    seen = [point["oracle"][factor] for point in points]
    held_out = [point["oracle"]["held_out"][factor] for point in points]
    axes.plot(x, seen, marker=".", **style)
    axes.plot(x, held_out, marker=".", **style | {"linestyle": (0, (2, 2)), "label": None})


def _legend_of_lines(axes: "Axes") -> None:
    axes.plot([], [], "k-", label="seen in training")
    axes.plot([], [], "k", linestyle=(0, (2, 2)), label="held out")


def _panel(axes: "Axes", points: Sequence[SweepPoint], field: str) -> None:
    points = sorted(points, key=lambda point: point[field])
    x = [point[field] for point in points]
    for factor, (color, width) in FACTORS.items():
        _lines(axes, x, points, factor, color=color, label=factor, linewidth=width)
    _legend_of_lines(axes)
    if field == "steps":
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
    axes.set(xlabel=FIELDS[field], ylabel="right by the oracle", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0%}")
    axes.grid(color="#dddddd")
