"""The scaling study as a user runs it, with the smallest networks and few steps."""

import json

import pytest

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.studies.scaling import study
from tests import tiny
from tests.in_process import launch


def toy(config, family, size, steps):
    changed = tiny.get_config()
    changed.training.update(steps=steps, batch_size=study.BATCH)
    return changed


def test_a_folder_holds_figures_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "resize", toy)
    monkeypatch.setattr(study, "HELD_OUT", 4)
    monkeypatch.setattr("launch.entry.load_config", lambda path: tiny.get_config())
    launch("scaling", "--networks=fit", "--sizes=1", "--steps=4", f"--out={tmp_path / 'made'}")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        *("scaling.json", "scaling.md", "scaling_loss.png", "scaling_bins.png"),
        "vocabulary.model",
    }
    report = json.loads((tmp_path / "made" / "scaling.json").read_text())
    assert report["steps"] == 4 and len(report["bin_edges"]) == 5
    (row,) = report["rows"]
    assert (row["family"], row["size"], row["kind"]) == ("fit", 1, "measured")
    assert row["parameters"] > 1e4 and row["gflop_per_video"] > 0
    assert 0 < row["ms_per_step_min"] <= row["ms_per_step"] <= row["ms_per_step_max"]
    assert len(row["held_out_loss_by_bin"]) == 6 and 0.1 < row["held_out_loss"] < 5
    printed = capsys.readouterr().out
    assert "4/4 steps of each in" in printed and "Held-out loss by ln sigma" in printed
    assert f"load {report['host']['load']:.1f} on " in printed


def test_an_unknown_size_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="--sizes=9: choose from 1,2,3,4"):
        launch("scaling", "--sizes=9", f"--out={tmp_path / 'o'}")
    with pytest.raises(ConfigError, match="--networks=fit,gan: choose from fit,unet,dit,dit_fac"):
        launch("scaling", "--networks=fit,gan", f"--out={tmp_path / 'o'}")
    assert not (tmp_path / "o").exists()
