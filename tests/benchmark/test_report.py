"""A report says of every figure what it is, and its page needs nothing else."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from snapvideo_jax.benchmark import plots, report
from tests.benchmark.example_rows import FACTS, row

PREDICTED = {"kind": "predicted", "device": "TPU v5 lite", "interleaved": False}
ROWS = [
    row("fit_500m", 100.0, 80.0, 120.0),
    row("unet_284m", 300.0, 280.0, 480.0),
    row("fit_500m", 160.0, batch=16),
    row("unet_284m", batch=16),
    row("fit_500m", 110.0, devices=2, batch=16),
    row("unet_284m", 310.0, devices=2, batch=16),
    row("fit_500m", 50.0, fast_ms=30.0, **PREDICTED),
    row("unet_284m", 90.0, fast_ms=60.0, **PREDICTED),
]
TREE = report.tree(ROWS, FACTS)
RATIOS = "How many times faster"


def test_no_table_holds_figures_of_two_kinds_and_each_says_which():
    tables = report.tables(TREE)
    assert [table.title for table in tables] == [
        "How many times faster, measured",
        "How many times faster, predicted",
        "Training step, measured",
        "Training step, predicted",
    ]
    assert [len(table.lines) for table in tables] == [2, 1, 6, 2]
    for table in tables:
        kind = table.title.split()[-1]
        device = {"measured": "NVIDIA A100-SXM4-80GB", "predicted": "TPU v5 lite"}[kind]
        assert table.source == (
            f"{kind} on {device}; jax 0.10.2, flax 0.12.8; 2026-01-31; {FACTS['command']}"
        )
        assert all(device in " ".join(line) for line in table.lines)


def test_what_is_predicted_is_a_band_and_so_is_its_ratio():
    tables = {table.title: table for table in report.tables(TREE)}
    steps, ratios = tables["Training step, predicted"], tables[f"{RATIOS}, predicted"]
    cells = dict(zip(steps.header, steps.lines[0], strict=True))
    assert (cells["ms per step"], cells["from, to"]) == ("50", "30 to 50")
    cells = dict(zip(ratios.header, ratios.lines[0], strict=True))
    assert (cells["times faster"], cells["in turns"]) == ("1.80", "-")
    assert cells["from, to"] == "1.20 to 3.00"  # 60/50, 90/30


def test_the_paper_and_a_lack_of_memory_stand_in_their_columns():
    tables = {table.title: table for table in report.tables(TREE)}
    ratios, steps = (tables[f"{name}, measured"] for name in (RATIOS, "Training step"))
    cells = dict(zip(ratios.header, ratios.lines[0], strict=True))
    assert (cells["times faster"], cells["from, to"]) == ("3.00", "3.00 to 4.00")
    assert (cells["paper, A100"], cells["in turns"]) == ("3.31", "yes")
    cells = [dict(zip(steps.header, line, strict=True)) for line in steps.lines]
    assert (cells[0]["ms per video"], cells[0]["paper, A100"], cells[0]["MFU"]) == (
        "12.5",
        "69.5",
        "32.1%",
    )
    assert (cells[3]["ms per video"], cells[3]["MFU"]) == ("out of memory", "-")


def test_markdown_has_tables_that_are_tables():
    text = report.markdown(TREE, {"ratios.png": b""})
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    assert [len(block) for block in blocks] == [4, 3, 8, 4]
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1 and len(set(map(len, block))) == 1
    assert "![How many times faster than its rival](ratios.png)" in text


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_its_pictures_and_asks_nothing_of_any_network():
    pictures = plots.pngs(TREE)
    text = report.page(TREE, pictures)
    page = Elements(text)
    images = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert len(images) == len(pictures) == 4
    assert all(src.startswith("data:image/png;base64,iVBOR") for src in images)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"}
    assert not any("href" in attrs or "style" in attrs for _, attrs in page.elements)
    assert not re.search(r"url\(|@import|https?:", text)
    assert FACTS["command"] in page.text and "<DIR>" not in text  # shown, not taken for a tag


def loaded(load, **fields):
    """The tables of two measured rows, or of others, on a machine of two cores."""
    rows = [row("fit_500m", 100.0, **fields), row("unet_284m", 300.0, **fields)]
    return report.tree(rows, FACTS | {"host": {"cores": 2, "load": load}})


def test_measured_tables_say_how_busy_the_machine_was():
    assert {table.load for table in report.tables(loaded(2.4))} == {"load 2.4 on 2 cores"}
    busy = loaded(3.06)
    line = "the machine was busy (load 3.1 on 2 cores): ratios in turns hold, times do not"
    assert {table.load for table in report.tables(busy)} == {line}
    for text in (report.markdown(busy, {}), report.page(busy, {})):
        assert text.count(line) == 2
    assert all(report.for_screen(table).endswith(line) for table in report.tables(busy))


def test_what_is_predicted_does_not_depend_on_the_load():
    tables = report.tables(loaded(9.0, **PREDICTED))
    assert {table.load for table in tables} == {""} and len(tables) == 2
    assert report.for_screen(tables[0]).endswith("|")


def test_json_is_json():
    assert json.loads(json.dumps(TREE)) == TREE
    assert list(TREE) == [*FACTS, "rows", "ratios"]


@pytest.mark.parametrize("name", ["ratios.png", "memory.png", "batch.png", "scaling.png"])
def test_pictures_open_and_show_something(name):
    with Image.open(io.BytesIO(plots.pngs(TREE)[name])) as picture:
        assert picture.format == "PNG" and picture.width > 600
        assert np.asarray(picture.convert("L")).std() > 5


def test_bars_are_the_ratios_beside_the_papers_one_panel_a_kind():
    figure = plots.ratios(TREE)
    assert [axes.get_title() for axes in figure.axes] == [
        "measured, NVIDIA A100-SXM4-80GB",
        "predicted, TPU v5 lite",
    ]
    ours, paper = [c for c in figure.axes[0].containers if hasattr(c, "patches")]
    assert [bar.get_height() for bar in ours.patches] == pytest.approx([3.0, 310 / 110])
    assert [bar.get_height() for bar in paper.patches] == pytest.approx([230.3 / 69.5] * 2)
    assert FACTS["command"] in " ".join(figure.get_supxlabel().split())


def test_lines_over_batches_mark_where_memory_ended():
    figure = plots.batches(TREE)
    assert [axes.get_title() for axes in figure.axes] == [
        "training step, measured",
        "training step, predicted",
    ]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["fit_500m, 1 device"].get_xdata()) == [8, 16]
    assert list(lines["fit_500m, 1 device"].get_ydata()) == [12.5, 10.0]
    assert list(lines["unet_284m, 1 device"].get_xdata()) == [8]
    assert "unet_284m: out of memory" in lines


def test_lines_over_devices_keep_the_batch_of_a_device():
    (axes, _) = plots.scaling(TREE).axes
    line = next(line for line in axes.lines if line.get_label() == "fit_500m, 8 a device")
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == pytest.approx([80.0, 16 / 0.11])


def test_no_picture_is_drawn_of_what_was_not_swept():
    alone = report.tree(ROWS[:1], FACTS)
    assert list(plots.pngs(alone)) == ["memory.png"]
    assert list(plots.pngs(report.tree(ROWS[:2], FACTS))) == ["ratios.png", "memory.png"]
