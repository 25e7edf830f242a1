"""The benchmark as a user runs it, with networks of toy size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import entry
from snapvideo_jax.benchmark import measure
from snapvideo_jax.errors import ConfigError
from tests.in_process import launch

CONFIGS = "--configs=tests/tiny.py,tests/tiny_unet.py,tests/tiny_dit.py"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "made" / "here"
    flags = "--modes=infer", "--repeats=3", "--batch_sizes=2", "--devices=1"
    launch("benchmark", CONFIGS, f"--out={out}", *flags)
    return out


def test_a_folder_holds_the_report_and_its_pictures(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("report.json", "report.md", "report.html"),
        *("ratios.png", "memory.png"),
    }
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "measured on cpu; python 3." in page


def test_report_json_has_the_documented_fields(folder):
    report = json.loads((folder / "report.json").read_text())
    assert {"rows", "ratios", "versions", "device", "date", "command", "host"} <= report.keys()
    assert report["command"].startswith("python -m launch.benchmark")
    assert {"jax", "flax"} <= report["versions"].keys() and report["device"] == "cpu"
    documented = (ROOT / "docs" / "benchmark.md").read_text()
    fields = {key for kind in ("rows", "ratios") for one in report[kind] for key in one}
    assert [field for field in fields if f"`{field}`" not in documented] == []


def test_each_config_is_timed_and_each_figure_is_there(folder):
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert [(row["config"], row["batch"]) for row in rows] == [
        ("tiny", 2),
        ("tiny_unet", 2),
        ("tiny_dit", 2),
    ]
    for row in rows:
        assert row["kind"] == "measured" and row["mode"] == "infer" and row["interleaved"]
        assert len(row["step_ms"]) == 3 and min(row["step_ms"]) > 0
        assert row["ms_per_video"] == pytest.approx(row["ms_per_step"] / row["batch"])
        assert row["mfu"] is None and row["tflops_per_second"] > 0  # a CPU has no peak
        assert row["peak_memory_bytes"] > 0 and row["memory_source"] == "compiler"


def test_ratios_are_of_the_rows(folder):
    report = json.loads((folder / "report.json").read_text())
    rows = {row["config"]: row for row in report["rows"]}
    pairs = [(ratio["config"], ratio["rival"]) for ratio in report["ratios"]]
    assert pairs == [("tiny", "tiny_unet"), ("tiny", "tiny_dit"), ("tiny_unet", "tiny_dit")]
    for ratio, pair in zip(report["ratios"], pairs, strict=True):
        row, rival = (rows[name] for name in pair)
        assert ratio["ratio"] == pytest.approx(rival["ms_per_video"] / row["ms_per_video"])
        assert ratio["parameters"] == pytest.approx(rival["parameters"] / row["parameters"])
        assert ratio["flops"] == pytest.approx(rival["model_flops"] / row["model_flops"])
        assert ratio["ratio_min"] <= ratio["ratio"] <= ratio["ratio_max"]
        assert ratio["paper_ratio"] is None and ratio["interleaved"]


def test_a_config_that_cannot_be_loaded_ends_with_one_line_and_exit_code_2(tmp_path):
    out = tmp_path / "o"
    command = [sys.executable, "-m", "launch.benchmark", "--configs=no/such.py", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not out.exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no/such.py: ")


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--configs=tests/tiny.py:pod"], "tests/tiny.py:pod: "),
        ([CONFIGS, "--videos=2x16"], "--videos=2x16: write sizes as 16x36x64, frames x height x"),
        ([CONFIGS, "--videos=2x24x16"], "tiny on 8 devices: videos of 2 x 24 x 16: model.fit.gro"),
        ([CONFIGS, "--modes=train,fly"], "--modes=train,fly: choose from train, infer"),
        (["--configs=tests/tiny.py,tests/tiny.py"], "name each one once"),
        ([CONFIGS, "--devices=1,64"], "--devices=64: there are 8"),
        ([CONFIGS, "--sweep", "--batch_sizes=4", "--max_batch=2"], "is above --max_batch=2"),
        ([CONFIGS, "--attention=fast"], "model.attention='fast' must be"),
        ([CONFIGS, "--max_batch=2"], "--max_batch does nothing here: it needs --sweep"),
        ([CONFIGS, "--topology=v5e-1", "--sweep"], "--sweep does nothing here"),
        ([CONFIGS, "--topology=v5e-1", "--repeats=3"], "--repeats does nothing here"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, flags, says):
    with pytest.raises(ConfigError, match=says):
        launch("benchmark", *flags, f"--out={tmp_path / 'o'}")
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_of_more_and_more_devices_there_is_a_row_each_and_a_picture(tmp_path, capsys):
    flags = "--configs=tests/tiny.py", "--modes=infer", "--repeats=1", "--devices=2,1"
    launch("benchmark", *flags, "--batch_sizes=2", "--dtype=bfloat16", f"--out={tmp_path}")
    assert (tmp_path / "scaling.png").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["devices"], row["batch"], row["mesh"]["data"]) for row in report["rows"]] == [
        (1, 2, 1),
        (2, 4, 2),
    ]
    assert {row["dtype"] for row in report["rows"]} == {"bfloat16"}
    printed = capsys.readouterr().out
    assert "One call of the network, measured" in printed
    assert f"load {report['host']['load']:.1f} on " in printed


def test_attention_of_two_kinds_makes_two_of_each_config(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        measure, "run", lambda request, devices, rows_of: seen.append(request) or []
    )
    launch("benchmark", CONFIGS, "--attention=fastest,plain", f"--out={tmp_path}")
    launch("benchmark", CONFIGS, "--attention=plain", f"--out={tmp_path}")
    both, plain = (
        {name: config.model.attention for name, config in request.configs.items()}
        for request in seen
    )
    assert both == {
        "tiny fastest": "fastest",
        "tiny plain": "plain",
        "tiny_unet fastest": "fastest",
        "tiny_unet plain": "plain",
        "tiny_dit fastest": "fastest",
        "tiny_dit plain": "plain",
    }
    assert plain == {"tiny": "plain", "tiny_unet": "plain", "tiny_dit": "plain"}


def test_a_sweep_doubles_the_batch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        measure, "run", lambda request, devices, rows_of: seen.append(request) or []
    )
    launch(
        "benchmark",
        "--configs=tests/tiny.py",
        "--sweep",
        "--batch_sizes=3",
        "--max_batch=30",
        f"--out={tmp_path}",
    )
    assert seen[0].batch_sizes == [3, 6, 12, 24] and seen[0].devices == [8]


@pytest.mark.usefixtures("libtpu")
def test_a_topology_is_predicted_and_nothing_is_run(tmp_path, plans, monkeypatch):
    monkeypatch.setattr(entry, "cache_folder", lambda: plans.parent)
    monkeypatch.setattr(measure, "measure", None)
    flags = "--topology=v5e-4", "--modes=infer", "--batch_sizes=2", "--dtype=bfloat16"
    two = "--configs=tests/tiny.py,tests/tiny_unet.py"
    launch("benchmark", two, *flags, f"--out={tmp_path}")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["config"] for row in report["rows"]] == ["tiny", "tiny_unet"]
    for row in report["rows"]:
        assert row["kind"] == "predicted" and row["device"] == "TPU v5 lite" and row["devices"] == 4
        assert row["batch"] == 8 and len(row["step_ms"]) == 1 and row["memory_source"] == "compiler"
        assert row["ms_per_video"] == pytest.approx(row["step_ms"][0] / 2)
        assert 0 < row["ms_per_step_min"] < row["ms_per_step_max"] == row["step_ms"][0]
        assert 0 < row["mfu"] < 1 and 0 < row["peak_memory_bytes"] < 1e9
    assert [ratio["kind"] for ratio in report["ratios"]] == ["predicted"]
    assert "predicted" in (tmp_path / "report.md").read_text()
    assert report["device"] == "TPU v5 lite" and report["versions"]["compiler"] == "libtpu 0.0.52"


@pytest.mark.usefixtures("libtpu")
def test_a_mesh_that_cannot_be_is_refused_before_anything_is_compiled(tmp_path):
    with pytest.raises(ConfigError, match="^shapes:tensor on 1 devices: mesh"):
        launch(
            "benchmark",
            "--configs=configs/shapes.py:tensor",
            "--topology=v5e-1",
            f"--out={tmp_path / 'o'}",
        )
    assert not (tmp_path / "o").exists()
