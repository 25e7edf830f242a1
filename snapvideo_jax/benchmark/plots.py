"""Pictures of a report: ratios beside the paper's, memory, and what batch and devices do to speed.

Each picture says below what kind of figures it shows and where they are from. matplotlib is
imported where a picture is drawn, so that timing needs none.
"""

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from snapvideo_jax.benchmark import report as reports
from snapvideo_jax.benchmark.report import Report
from snapvideo_jax.benchmark.rows import GIGA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

OURS, PAPER = "#2e6fb7", "#b9bec5"
COLORS = ("#2e6fb7", "#d1603d", "#2e9e5b", "#8e5ea2", "#c2a01e", "#555555")


def pngs(report: Report) -> dict[str, bytes]:
    """Draws every picture that the rows have figures for; returns file name -> PNG."""
    rows = report["rows"]
    figures = {}
    if report["ratios"]:
        figures["ratios.png"] = ratios(report)
    if any(row["peak_memory_bytes"] for row in rows):
        figures["memory.png"] = memory(report)
    if any(len(_values(line, "batch")) > 1 for line in _lines(rows, "devices").values()):
        figures["batch.png"] = batches(report)
    if len(_values(rows, "devices")) > 1:
        figures["scaling.png"] = scaling(report)
    return {name: png(figure) for name, figure in figures.items()}


def ratios(report: Report) -> "Figure":
    """Draws how many times faster networks are, with the spread of rounds, and the paper's bars."""
    all_ratios = report["ratios"]
    keys = list(dict.fromkeys((ratio["kind"], ratio["device"]) for ratio in all_ratios))
    figure, panels = row_of_panels(report, keys, 1.6 + 1.5 * len(all_ratios))
    for axes, key in zip(panels, keys, strict=True):
        _ratio_bars(axes, [each for each in all_ratios if (each["kind"], each["device"]) == key])
        axes.set_title(", ".join(key), fontsize=10)
    return figure


def _ratio_bars(axes: "Axes", ratios: Rows) -> None:
    """Draws the bars of ratios of one kind and device."""
    kind, device = ratios[0]["kind"], ratios[0]["device"]
    places = range(len(ratios))
    heights = [ratio["ratio"] for ratio in ratios]
    below = [ratio["ratio"] - ratio["ratio_min"] for ratio in ratios]
    above = [ratio["ratio_max"] - ratio["ratio"] for ratio in ratios]
    spread = {"yerr": [below, above], "capsize": 4} if kind == "measured" else {}
    ours = axes.bar(places, heights, 0.38, color=OURS, **spread)
    ours.set_label(f"{kind}, {device}")
    axes.bar_label(ours, [f"{height:.2f}" for height in heights], padding=3)
    papers = [(i + 0.4, each["paper_ratio"]) for i, each in enumerate(ratios)]
    papers = [(place, height) for place, height in papers if height]
    if papers:
        paper_places, heights = columns(papers)
        theirs = axes.bar(paper_places, heights, 0.38, color=PAPER, label="paper, A100")
        axes.bar_label(theirs, [f"{height:.2f}" for height in heights], padding=3)
    axes.axhline(1, color="#555555", linewidth=1)
    middle = 0.2 if papers else 0.0  # of our bar and the paper's
    axes.set_xticks([i + middle for i in places], [_bar_label(each) for each in ratios], fontsize=8)
    axes.set_ylabel("times faster than its rival")
    highest = max(max(ratio["ratio_max"], ratio["paper_ratio"] or 0) for ratio in ratios)
    axes.set_xlim(middle - 0.6, middle + len(ratios) - 0.4)
    axes.set_ylim(0, 1.4 * highest)  # room for the legend
    axes.legend(fontsize=8)


def memory(report: Report) -> "Figure":
    """Draws the bytes on one device: a bar for each row, those that ran out of memory marked."""
    rows = [row for row in report["rows"] if row["peak_memory_bytes"]]
    names = list(dict.fromkeys(row["config"] for row in rows))
    figure, (axes,) = row_of_panels(report, [""], 7.5, 1.5 + 0.3 * len(rows))
    sizes = [row["peak_memory_bytes"] / GIGA for row in rows]
    colors = [COLORS[names.index(row["config"]) % len(COLORS)] for row in rows]
    bars = axes.barh(range(len(rows)), sizes, color=colors)
    texts = [
        f"{size:.3g} GB, by the {row['memory_source']}"
        + (", out of memory" if row["out_of_memory"] else "")
        for size, row in zip(sizes, rows, strict=True)
    ]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    labels = [
        f"{row['config']} {row['mode']}, batch {row['batch']}, {_devices_text(row)} ({row['kind']})"
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="GB on one device", xlim=(0, 1.9 * max(sizes)))
    return figure


def batches(report: Report) -> "Figure":
    """Draws ms per video against the batch; a dotted line where a batch ran out of memory."""
    figure, panels = _mode_panels(report)
    for axes, rows in panels:
        for place, ((config, *_), line) in enumerate(_lines(rows, "devices").items()):
            color = COLORS[place % len(COLORS)]
            points = [(r["batch"], r["ms_per_video"]) for r in line if not r["out_of_memory"]]
            x, y = columns(sorted(points))
            axes.plot(x, y, color=color, marker="o", label=f"{config}, {_devices_text(line[0])}")
            for row in line:
                if row["out_of_memory"]:
                    axes.axvline(row["batch"], color=color, linestyle=":")
                    axes.plot([], [], color=color, linestyle=":", label=f"{config}: out of memory")
        _power_of_two(axes, _values(rows, "batch"))
        axes.set(xlabel="videos a step, all devices", ylabel="ms per video, of one device")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    return figure


def scaling(report: Report) -> "Figure":
    """Draws videos a second against the devices, beside lines in proportion to the devices.

    The batch of each device stays the same along a line.
    """
    figure, panels = _mode_panels(report)
    for axes, rows in panels:
        for place, ((config, batch), line) in enumerate(_lines(rows, "device_batch").items()):
            color = COLORS[place % len(COLORS)]
            points = sorted(
                (r["devices"], r["videos_per_second"]) for r in line if not r["out_of_memory"]
            )
            if not points:
                continue
            devices, speeds = columns(points)
            ideal = [speeds[0] * number / devices[0] for number in devices]
            axes.plot(
                devices, speeds, color=color, marker="o", label=f"{config}, {batch:g} a device"
            )
            axes.plot(devices, ideal, color=color, linestyle="--", linewidth=1)
        axes.plot([], [], "k--", linewidth=1, label="in proportion")
        _power_of_two(axes, _values(rows, "devices"))
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="devices", ylabel="videos a second")
        axes.legend(fontsize=8)
    return figure


def _mode_panels(report: Report) -> "tuple[Figure, Iterator[tuple[Axes, Rows]]]":
    """Returns a figure, and axes for each kind and mode with their rows."""
    keys = list(dict.fromkeys((row["kind"], row["mode"]) for row in report["rows"]))
    figure, panels = row_of_panels(report, keys, 1 + 4.6 * len(keys))
    rows = [[row for row in report["rows"] if (row["kind"], row["mode"]) == key] for key in keys]
    for axes, (kind, mode) in zip(panels, keys, strict=True):
        axes.set_title(f"{reports.MODES[mode]}, {kind}", fontsize=10)
        axes.grid(color="#dddddd")
    return figure, zip(panels, rows, strict=True)


def row_of_panels(
    report: Report, names: Sequence[Any], width: float, height: float = 4.2
) -> "tuple[Figure, Sequence[Axes]]":
    """Returns a figure of one row of axes, with the source of its numbers written below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.5, width), height + 0.5), layout="constrained")
    text = " ".join(reports.source_line(report, kind) + "." for kind in reports.kinds(report))
    lines = textwrap.fill(text, int(15 * max(6.5, width)))
    figure.supxlabel(lines, fontsize=7, color="#555555")
    return figure, figure.subplots(1, len(names), squeeze=False)[0]


def _lines(rows: Rows, field: str) -> dict[tuple, list]:
    """Groups rows by config and by "devices" or "device_batch", the videos of each device."""
    groups = {}
    for row in rows:
        value = row["devices"] if field == "devices" else row["batch"] / row["devices"]
        groups.setdefault((row["config"], value), []).append(row)
    return groups


def _values(rows: Rows, field: str) -> list[int]:
    return sorted({row[field] for row in rows})


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Returns points as matplotlib takes them: all x, all y."""
    return [x for x, _ in points], [y for _, y in points]


def _power_of_two(axes: "Axes", values: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])


def _bar_label(ratio: Mapping[str, Any]) -> str:
    size = f"batch {ratio['batch']}, {_devices_text(ratio)}"
    video = reports.video_text(ratio["video"])
    names = f"{ratio['config']}\nover {ratio['rival']}"
    return f"{names}\n{ratio['mode']}, {ratio['dtype']}\n{video}\n{size}"


def _devices_text(row: Mapping[str, Any]) -> str:
    return f"{row['devices']} device{'s' if row['devices'] > 1 else ''}"


def png(figure: "Figure") -> bytes:
    """Returns the picture as a file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
