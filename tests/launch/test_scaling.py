"""The scaling study as a user runs it, with the smallest networks and few steps."""

import json

import pytest

from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.studies.scaling import study
from tests import tiny
from tests.in_process import launch
from tests.test_storage import fill

FLAGS = "--networks=fit", "--sizes=1", "--steps=4"


def toy(config, family, size, steps):
    changed = tiny.get_config()
    changed.training.update(steps=steps, batch_size=study.BATCH)
    return changed


@pytest.fixture
def small(monkeypatch):
    """Makes the study one of the smallest network."""
    monkeypatch.setattr(study, "resize", toy)
    monkeypatch.setattr(study, "HELD_OUT", 4)
    monkeypatch.setattr("launch.entry.load_config", lambda path: tiny.get_config())


@pytest.mark.usefixtures("small")
def test_a_folder_holds_figures_and_pictures(tmp_path, capsys):
    launch("scaling", *FLAGS, f"--out={tmp_path / 'made'}")
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


@pytest.mark.faults
@pytest.mark.usefixtures("small")
def test_a_report_on_a_full_disk_is_one_line_and_the_screen_has_the_figures(
    disk, monkeypatch, capsys
):
    folder, run = disk(1 << 20), study.run

    def filling(*arguments, **settings):
        result = run(*arguments, **settings)
        fill(folder, leave=32 << 10)  # the figures fit, the pictures do not
        return result

    monkeypatch.setattr(study, "run", filling)
    with pytest.raises(
        StorageError, match=r"cannot write .*\.png: No space left on device"
    ) as full:
        launch("scaling", *FLAGS, f"--out={folder / 'out'}")
    assert "\n" not in str(full.value)
    assert "Held-out loss by ln sigma" in capsys.readouterr().out
    json.loads((folder / "out" / "scaling.json").read_text())
    assert not list((folder / "out").glob(".*"))


@pytest.mark.parametrize("size", [8 << 10, 20 << 10])
def test_a_disk_that_does_not_hold_the_vocabulary_ends_a_study_before_it_trains(
    size, disk, monkeypatch
):
    monkeypatch.setattr(study, "run", None)
    with pytest.raises(StorageError, match="cannot write .*vocabulary.model: No space left"):
        launch("scaling", *FLAGS, f"--out={disk(size) / 'out'}")
