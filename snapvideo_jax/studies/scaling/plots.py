"""Pictures of the scaling study: the loss by size and cost, and by noise level."""

from typing import TYPE_CHECKING

from snapvideo_jax.benchmark import plots
from snapvideo_jax.benchmark.report import Report
from snapvideo_jax.studies.scaling import report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = dict(zip(report.NAMES, plots.COLORS, strict=False))


def pngs(study: Report) -> dict[str, bytes]:
    """Draws the loss by size and cost, and by noise level; returns file name -> PNG."""
    return {
        "scaling_loss.png": plots.png(loss(study)),
        "scaling_bins.png": plots.png(bins(study)),
    }


def loss(study: Report) -> "Figure":
    """Draws the held-out loss against parameters, FLOPs and time: a curve a family."""
    from matplotlib.ticker import LogLocator  # slow to import

    fields = {
        "parameters": "parameters of the network",
        "gflop_per_video": "GFLOP of a network call, a video",
        "ms_per_step": "ms of a training step, median",
    }
    figure, panels = plots.row_of_panels(study, list(fields), 12.0)
    for axes, (field, text) in zip(panels, fields.items(), strict=True):
        for family, rows in _families(study):
            costs, losses = plots.columns([(row[field], row["held_out_loss"]) for row in rows])
            label, color = report.NAMES[family], COLORS[family]
            axes.plot(costs, losses, color=color, marker="o", label=label)
        axes.set(xscale="log", yscale="log", xlabel=text, ylabel="held-out loss")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        _plain(axes)
        axes.legend(fontsize=8)
    return figure


def bins(study: Report) -> "Figure":
    """Draws the held-out loss by range of ln sigma: a curve a network, wider for large ones."""
    figure, (axes,) = plots.row_of_panels(study, [""], 8.0)
    places = range(len(report.labels(study)))
    for family, rows in _families(study):
        for row in rows:
            axes.plot(
                places,
                row["held_out_loss_by_bin"],
                label=f"{report.name(row)}, {row['parameters'] / 1e6:.2f} M",
                color=COLORS[family],
                linewidth=0.6 + 0.6 * row["size"],
                marker=".",
            )
    axes.set_xticks(places, report.labels(study), fontsize=8)
    axes.set(yscale="log", xlabel="ln sigma, ranges equally likely in training")
    axes.set_ylabel("held-out loss")
    _plain(axes)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _plain(axes: "Axes") -> None:
    """Writes losses as 0.02 and not as powers of ten."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.grid(color="#dddddd", which="both")


def _short(value: float) -> str:
    """Writes a number as 0.05, 200 or 1.5 M."""
    return f"{value / 1e6:g} M" if value >= 1e5 else f"{value:g}"


def _families(study: Report) -> list[tuple[str, list]]:
    names = list(dict.fromkeys(row["family"] for row in study["rows"]))
    return [(name, [row for row in study["rows"] if row["family"] == name]) for name in names]
