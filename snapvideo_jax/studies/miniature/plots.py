"""Pictures of the miniature: the rows of its tables by seed, and the sweeps of the sampler."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapvideo_jax.benchmark import plots
from snapvideo_jax.benchmark.report import Report
from snapvideo_jax.evaluation import noise_levels
from snapvideo_jax.studies.miniature import report
from snapvideo_jax.studies.miniature.units import FIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = {
    "Table 3, noise laws": tuple(report.TABLE_3),
    "Table 2, networks": tuple(report.TABLE_2),
}


def pngs(study: Report) -> dict[str, bytes]:
    """Draws the tables, the losses by noise, and the sweeps; returns file name -> PNG."""
    return {
        "miniature_rows.png": plots.png(rows(study)),
        "miniature_losses.png": plots.png(losses(study)),
        "miniature_sweeps.png": plots.png(sweeps(study)),
    }


def rows(study: Report) -> "Figure":
    """Draws the Frechet distance of each row: a point a seed, a line for their mean."""
    figure, panels = plots.row_of_panels(study, list(ROWS), 11.0)
    for axes, (title, names) in zip(panels, ROWS.items(), strict=True):
        names = [name for name in names if report.units(study, name)]
        for place, name in enumerate(names):
            seeds = report.values(study, name, "Frechet")
            color = plots.COLORS[1] if name == FIT else plots.COLORS[0]
            axes.plot([place] * len(seeds), seeds, color=color, marker="o", linestyle="")
            mean = statistics.mean(seeds)
            axes.plot([place - 0.3, place + 0.3], [mean, mean], color=color)
        labels = [report.NAMES.get(name, name) for name in names]
        axes.set_xticks(range(len(names)), labels, fontsize=8, rotation=20)
        axes.set(title=title, yscale="log", ylabel="Frechet distance, random convolutions")
        axes.grid(axis="y", which="both", color="#dddddd")
    return figure


def losses(study: Report) -> "Figure":
    """Draws what each row leaves of the noise, over that of ours: below 1 is better than ours."""
    figure, (axes,) = plots.row_of_panels(study, [""], 7.0)
    names = dict.fromkeys(unit["row"] for unit in study["rows"] if unit["row"] != FIT)
    ours = _mean_losses(study, FIT)
    for i, name in enumerate(names):
        ratios = [a / b for a, b in zip(_mean_losses(study, name), ours, strict=True)]
        label, color = report.NAMES.get(name, name), plots.COLORS[i % len(plots.COLORS)]
        style = "-" if i < len(plots.COLORS) else "--"
        axes.plot(noise_levels.LEVELS, ratios, style, color=color, marker=".", label=label)
    axes.axhline(1, color="#555555", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="noise nu = sigma sigma_in",
        ylabel="loss over that of ours",
    )
    axes.legend(fontsize=8)
    return figure


def sweeps(study: Report) -> "Figure":
    """Draws Figures 5 and 6: Frechet distance and prompts that come out right, a line a seed."""
    sweeps_of = {"guidance": ("w", "guidance w"), "sampler_steps": ("steps", "sampler steps")}
    figure, panels = plots.row_of_panels(study, [*sweeps_of] * 2, 13.0)
    measures = ("frechet", "Frechet distance"), ("all", "all right, held out")
    fields = [(field, *names) for field, names in sweeps_of.items()]
    for axes, (field, name, label), (measure, text) in zip(
        panels, fields * 2, [measures[0]] * 2 + [measures[1]] * 2, strict=True
    ):
        for unit in report.units(study, FIT):
            heights = [_height(point, measure) for point in unit[field]]
            axes.plot([point[name] for point in unit[field]], heights, marker=".")
        if field == "sampler_steps":
            axes.set_xscale("log", base=2)
        axes.set(xlabel=label, ylabel=text)
    return figure


def _height(point: dict, measure: str) -> float:
    return point["frechet"] if measure == "frechet" else point["held_out"]["all"]


def _mean_losses(study: Report, row: str) -> Sequence[float]:
    units = report.units(study, row)
    return [statistics.mean(level) for level in zip(*(u["losses"] for u in units), strict=True)]
