"""Rows -> report.json, report.md and report.html; every table says where its figures are from.

And how busy the machine was, if they are measured.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from snapvideo_jax.benchmark import ratios as ratios_
from snapvideo_jax.benchmark import rows as rows_
from snapvideo_jax.benchmark.rows import GIGA, Row

TITLE = "Networks against each other"
MODES = {"train": "training step", "infer": "one call of the network"}
BUSY = 1.2  # programs a core that want to run, from which on times are not to be trusted
NOTE = (
    "ms per video is the time of one device: the step's, times devices, over videos. The paper's "
    "figures (Snap Video, Table 2) are per video and A100 GPU, at a batch it does not name. MFU "
    "counts what the algorithm needs, hardware what is computed again too, both against the "
    "device's bfloat16 peak. Parameters and FLOPs of a pair are the rival's over those of the "
    "first. What is predicted is the slow end of a band, by the compiler's "
    "cycles; 'from' is its fast end, by the data sheet. '-' is not known."
)
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:90em;margin:2em auto;padding:0 1em}"
    "p{max-width:60em}table{border-collapse:collapse;font-size:85%;display:block;overflow-x:auto}"
    "td,th{padding:.2em .6em;text-align:right;white-space:nowrap;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%;display:block}.source{color:#555;font-size:85%;overflow-wrap:anywhere}"
)


CAPTIONS = {
    "ratios.png": "How many times faster than its rival",
    "memory.png": "Memory of one device",
    "batch.png": "Time of a video, by batch",
    "scaling.png": "Videos a second, by devices",
}
Report = Mapping[str, Any]  # as report.json has it


class Table(NamedTuple):
    """A table of text.

    source: kind of its figures, device, versions, date and command. load: how busy the machine was
    when they were measured; "" for others.
    """

    title: str
    source: str
    load: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]


def tree(rows: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns report.json. facts: device, host, versions, date and command."""
    ratios = [ratio._asdict() | {"video": list(ratio.video)} for ratio in ratios_.ratios(rows)]
    return dict(facts) | {"rows": [rows_.tree(row) for row in rows], "ratios": ratios}


def source_line(report: Report, kind: str) -> str:
    """Says of what kind figures are, on what device, by which versions and command, and when."""
    rows = [row for row in report["rows"] if row["kind"] == kind]
    return source(report, kind, list(dict.fromkeys(row["device"] for row in rows)))


def source(facts: Mapping[str, Any], kind: str, devices: Sequence[str]) -> str:
    """Says of what kind figures are, on what devices, by which versions and command, and when."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{kind} on {', '.join(devices)}; {versions}; {facts['date']}; {facts['command']}"


def load_line(report: Report, kind: str) -> str:
    """Says how busy the machine was when figures were measured; "" for figures of other kinds."""
    host = report.get("host")
    if kind != "measured" or host is None:
        return ""
    load = f"load {host['load']:.1f} on {host['cores']} core{'s' * (host['cores'] > 1)}"
    if host["load"] <= BUSY * host["cores"]:
        return load
    return f"the machine was busy ({load}): ratios in turns hold, times do not"


def kinds(report: Report) -> list[str]:
    """Returns the kinds of rows there are."""
    return list(dict.fromkeys(row["kind"] for row in report["rows"]))


def tables(report: Report) -> list[Table]:
    """Returns the ratios of each kind, then the rows of each kind and mode."""
    tables = []
    for kind in kinds(report):
        ratios = [ratio for ratio in report["ratios"] if ratio["kind"] == kind]
        if ratios:
            tables.append(_ratios(ratios, source_line(report, kind), load_line(report, kind)))
    for kind in kinds(report):
        for mode in MODES:
            rows = [row for row in report["rows"] if (row["kind"], row["mode"]) == (kind, mode)]
            if rows:
                tables.append(_rows(rows, source_line(report, kind), load_line(report, kind)))
    return tables


def _ratios(ratios: Sequence[Mapping[str, Any]], source: str, load: str) -> Table:
    header = ("one over its rival", "mode", "video", "batch", "devices", "dtype", "times faster")
    header += ("from, to", "in turns", "paper, A100", "parameters", "FLOPs")
    lines = [
        (
            f"{one['config']} over {one['rival']}",
            one["mode"],
            video_text(one["video"]),
            str(one["batch"]),
            f"{one['devices']} x {one['device']}",
            one["dtype"],
            f"{one['ratio']:.2f}",
            f"{one['ratio_min']:.2f} to {one['ratio_max']:.2f}",
            _turns(one),
            _number(one["paper_ratio"], ".2f"),
            _number(one["parameters"], ".2f"),
            _number(one["flops"], ".2f"),
        )
        for one in ratios
    ]
    title = f"How many times faster, {ratios[0]['kind']}"
    return Table(title=title, source=source, load=load, header=header, lines=lines)


def video_text(video: Sequence[int]) -> str:
    """Writes T x H x W, with padding, as the network sees it."""
    return " x ".join(map(str, video))


def _turns(ratio: Mapping[str, Any]) -> str:
    if ratio["kind"] == "predicted":
        return "-"
    return "yes" if ratio["interleaved"] else "no"


def _rows(rows: Sequence[Mapping[str, Any]], source: str, load: str) -> Table:
    header = ("config", "video", "batch", "devices", "dtype", "attention")
    header += ("ms per video", "paper, A100", "ms per step")
    header += ("from, to", "videos/s", "TFLOP/s", "MFU", "hardware", "memory GB", "compile s")
    title = f"{MODES[rows[0]['mode']].capitalize()}, {rows[0]['kind']}"
    lines = [_line(row) for row in rows]
    return Table(title=title, source=source, load=load, header=header, lines=lines)


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    least, most = row["ms_per_step_min"], row["ms_per_step_max"]
    memory = row["peak_memory_bytes"]
    return (
        row["config"],
        video_text(row["video"]),
        str(row["batch"]),
        f"{row['devices']} x {row['device']}",
        row["dtype"],
        row["attention"],
        "out of memory" if row["out_of_memory"] else _number(row["ms_per_video"]),
        _number(ratios_.paper_ms(row["config"], row["mode"]), ".1f"),
        _number(row["ms_per_step"]),
        "-" if least is None else f"{_number(least)} to {_number(most)}",
        _number(row["videos_per_second"]),
        _number(row["tflops_per_second"]),
        _number(row["mfu"], ".1%"),
        _number(row["hardware_utilization"], ".1%"),
        _number(memory and memory / GIGA, ".3g"),
        _number(row["compile_seconds"], ".0f"),
    )


def _number(value: float | None, format_spec: str | None = None) -> str:
    """Writes a number with four digits or as `format_spec` says; "-" for what is not known."""
    if value is None:
        return "-"
    return format(value, format_spec or (".0f" if value >= 1000 else ".4g"))


def markdown(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Returns report.md: the tables, and links to the pictures beside it."""
    parts = [f"# {TITLE}", NOTE]
    for table in tables(report):
        parts += markdown_section(table, report["command"])
    parts += [f"![{CAPTIONS[name]}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def markdown_section(table: Table, command: str) -> list[str]:
    """Returns the paragraphs of a table: title, figures, load and source."""
    load = [table.load] if table.load else []
    return [
        f"## {table.title}",
        markdown_table(table),
        *load,
        table.source.replace(command, f"`{command}`"),
    ]


def for_screen(table: Table) -> str:
    """Returns a table for the screen, whose line of load tells how far to trust it."""
    return "\n".join(["", table.title, markdown_table(table), *([table.load] * bool(table.load))])


def markdown_table(table: Table) -> str:
    """Returns a Markdown table whose columns stand below each other on a screen too."""
    cells = [table.header, *table.lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    pad = lambda line: [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
    first = lambda line: line[0].strip().ljust(widths[0])
    text = ["| " + " | ".join([first(line), *line[1:]]) + " |" for line in map(pad, cells)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([text[0], "| " + " | ".join(rule) + " |", *text[1:]])


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Returns report.html: everything in one file, which asks nothing of any network."""
    parts = [f"<h1>{TITLE}</h1>", f"<p>{html.escape(NOTE)}</p>"]
    parts += [_html(table) for table in tables(report)]
    for name, content in pictures.items():
        data = base64.b64encode(content).decode()
        caption = html.escape(CAPTIONS[name])
        parts.append(f"<h2>{caption}</h2>")
        parts.append(f'<img alt="{caption}" src="data:image/png;base64,{data}">')
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{TITLE}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n" + "\n".join(
        [*parts, "</body></html>\n"]
    )


def _html(table: Table) -> str:
    row = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)
    body = "\n".join([row("th", table.header), *(row("td", line) for line in table.lines)])
    load = f"<p>{html.escape(table.load)}</p>\n" if table.load else ""
    return (
        f"<h2>{html.escape(table.title)}</h2>\n<table>{body}</table>\n{load}"
        f'<p class="source">{html.escape(table.source)}</p>'
    )
