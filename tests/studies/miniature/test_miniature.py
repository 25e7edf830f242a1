"""The paper in miniature: what is trained, how it is scored, and when a verdict is given."""

import json

import numpy as np
import pytest

from configs import ablation, miniature
from snapvideo_jax import build
from snapvideo_jax.data import shapes
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.planner import cost
from snapvideo_jax.studies.miniature import averaging, plots, report, scoring, units
from tests import tiny
from tests.in_process import launch
from tests.test_storage import fill

CONFIG = tiny.get_config()


@pytest.mark.parametrize("size", ["", ",gpu"])
def test_the_rows_of_table_3_are_the_papers_in_units_of_s_sqrt_T(size):
    full = {"": 2.0, ",gpu": 8**0.5}[size]
    for row, (sigma_data, sigma_in, image_sigma_in) in ablation.ROWS.items():
        law = miniature.get_config(row + size).diffusion
        expected = 1.0 if row == "edm" else sigma_in / 4 * full
        assert (law.sigma_data, law.image_sigma_in) == (sigma_data, image_sigma_in)
        assert law.sigma_in == pytest.approx(expected)
    assert {miniature.get_config(row + size).diffusion.P_mean for row in miniature.ROWS} == {0.3}


@pytest.mark.parametrize("size", ["", ",gpu"])
def test_fit_and_unet_have_as_many_parameters_to_a_tenth(size):
    fit, unet = (
        cost.parameters(build.abstract_model(miniature.get_config(row + size), 64)[1]["network"])
        for row in ("ours", "unet")
    )
    assert unet == pytest.approx(fit, rel=0.1)


def test_all_rows_have_the_same_noise_on_their_way_in_units_of_x():
    samplings = [miniature.get_config(row) for row in miniature.ROWS]
    ranges = {
        (round(c.sampling.sigma_min * c.diffusion.sigma_in, 9), c.sampling.steps) for c in samplings
    }
    assert ranges == {(0.02, 24)}


def test_an_unknown_row_or_size_is_refused():
    for row in ("theirs", "ours,tpu"):
        with pytest.raises(ValueError, match="after the colon choose edm, scaled"):
            miniature.get_config(row)


def test_units_come_seed_by_seed_and_the_short_fit_sees_as_many_videos_as_the_unet():
    rows = {"ours": tiny.get_config(), "half": tiny.get_config(), "unet": tiny.get_config()}
    all_units = units.units(rows, unet_steps=5, seeds=[3, 4])
    names = ["ours", "half", "unet", "ours_short"]
    assert [unit.name for unit in all_units] == [f"{n}-{seed}" for seed in (3, 4) for n in names]
    assert [unit.config.training.steps for unit in all_units[:4]] == [8, 8, 5, 5]
    assert [unit.config.seed for unit in all_units] == [3] * 4 + [4] * 4
    assert [unit.sweep for unit in all_units] == [True, False, False, False] * 2
    assert rows["unet"].training.steps == 8  # not changed in place


def test_real_videos_are_of_the_test_split_and_half_held_out():
    world = build.world(CONFIG)
    videos = scoring.real_videos(world, 4)
    held = shapes.draw_scene(world, 0, shapes.TEST_START + 1, image=False, held_out=True)
    assert np.array_equal(videos[1], shapes.render(world, held))
    seen = shapes.draw_scene(world, 0, shapes.TEST_START + 2, image=False, held_out=False)
    assert np.array_equal(videos[2], shapes.render(world, seen))


def test_a_set_is_as_far_from_itself_as_rounding_and_far_from_noise():
    real = scoring.real_videos(build.world(CONFIG), 80)
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    assert scoring.frechet(real, real) < 1e-6 < 0.1 < scoring.frechet(real, noise)


def test_figure_2_means_over_equal_pixels_gain_10_log_10_of_their_number():
    still = np.random.default_rng(0).integers(0, 256, (64, 1, 4, 4, 3), dtype=np.uint8)
    still = still.repeat(4, 1).repeat(4, 2).repeat(4, 3)
    rows = averaging.averages(still)
    for row in rows:
        gain = 10 * np.log10(row.frames * row.side**2)
        assert row.snr - rows[0].snr == pytest.approx(gain, abs=0.15)
        assert row.lost == pytest.approx(0, abs=1e-5)


def test_figure_2_means_over_unlike_pixels_lose_them():
    busy = np.random.default_rng(0).integers(0, 256, (64, 4, 8, 8, 3), dtype=np.uint8)
    for row in averaging.averages(busy):
        assert row.lost == pytest.approx(1 - 1 / (row.frames * row.side**2), abs=0.01)


@pytest.mark.parametrize(
    ("ours", "theirs", "less_is_better", "says"),
    [
        ([1, 2], [3, 4], True, "yes"),
        ([3, 4], [1, 2], True, "no"),
        ([1, 3], [2, 4], True, "open"),
        ([3, 4], [1, 2], False, "yes"),
        ([1, 2], [2, 4], False, "open"),
    ],
)
def test_a_verdict_takes_every_seed(ours, theirs, less_is_better, says):
    assert report.verdict(ours, theirs, less_is_better) == says


def unit(row, seed, frechet):
    rates = dict.fromkeys(scoring.FACTORS, 0.5)
    scores = {"seen": rates, "held_out": rates, "frechet": frechet}
    sweeps = {"guidance": [{"w": 1.0, **scores}], "sampler_steps": [{"steps": 4, **scores}]}
    return {
        **{"row": row, "seed": seed, "steps": 5, "videos": 40, "seconds": 2.0, "parameters": 1000},
        **{"gflop_per_video": 0.1, "kind": "measured", "device": "cpu", "losses": [frechet] * 5},
        **scores,
        **(sweeps if row == "ours" else {}),
    }


DISTANCES = {"ours": 1, "half": 2, "edm": 1.05, "unet": 0.5, "ours_short": 3}
STUDY = {
    "rows": [
        unit(row, seed, distance + 0.1 * seed)
        for row, distance in (
            ("ours", 1),
            ("half", 2),
            ("edm", 1.05),
            ("unet", 0.5),
            ("ours_short", 3),
        )
        for seed in (0, 1)
    ],
    "laws": {
        row: miniature.get_config(row).diffusion.to_dict()
        for row in ("ours", "half", "edm", "unet")
    },
    "averages": [averaging.Average(1, 1, 3.0, 0.0)._asdict()],
    **{"versions": {"jax": "0"}, "date": "today", "command": "python -m launch.reproduce"},
}


def test_the_page_has_each_row_beside_the_papers_and_a_verdict_where_seeds_agree():
    text = report.markdown(STUDY, {"miniature_rows.png": b""})
    line = lambda start: next(x for x in text.splitlines() if x.startswith(f"| {start} "))
    assert "1.05 (1 to 1.1)" in line("ours") and "3.07, 27.79" in line("ours")
    assert line("ours against half").split("|")[2].strip() == "yes"
    assert line("ours against edm").split("|")[2].strip() == "open"
    assert line("FIT, equal videos against U-Net").split("|")[2].strip() == "no"
    assert "1 x 1 x 1" in text and "![miniature_rows](miniature_rows.png)" in text
    assert "measured on cpu; jax 0; today; `python -m launch.reproduce`" in text


def test_pictures_show_every_seed():
    figure = plots.rows(STUDY)
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in points][2] == pytest.approx([1, 1.1])
    assert all(png.startswith(b"\x89PNG") for png in plots.pngs(STUDY).values())


def test_a_unit_is_trained_and_scored(monkeypatch, tmp_path):
    """The smallest network; all but its size is that of a study."""
    monkeypatch.setattr(scoring, "PROMPTS", 2)
    monkeypatch.setattr(scoring, "VIDEOS", 4)
    monkeypatch.setattr(scoring, "frechet", lambda real, generated: float(len(generated)))
    train_vocabulary(build.source(CONFIG, print).captions(), tmp_path / "v.model")
    text = build.text(CONFIG, tmp_path / "v.model")
    seen = []
    unit = units.Unit("half", units.with_steps(CONFIG, 3), sweep=False)
    figures = units.run(unit, text, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (figures["row"], figures["videos"], figures["frechet"]) == ("half", 24, 4.0)
    assert 0 <= figures["held_out"]["all"] <= 1 and len(figures["losses"]) == 5
    assert figures["parameters"] > 1000 and figures["gflop_per_video"] > 0


@pytest.fixture
def runs(monkeypatch):
    """Names of the units that a study runs; none is trained."""
    runs = []

    def run(unit_, text, progress):
        runs.append(unit_.name)
        progress(unit_.config.training.steps, unit_.config.training.steps)
        return unit(unit_.row, unit_.config.seed, 1.5)

    timing = {"fit_ms": 1.0, "unet_ms": 3.0, "unet_steps": 4}
    monkeypatch.setattr(units, "run", run)
    monkeypatch.setattr(units, "steps_in_equal_time", lambda *arguments: timing)
    return runs


def test_a_study_writes_its_page_goes_on_where_it_was_and_is_not_mixed(runs, tmp_path, capsys):
    launch("reproduce", "--steps=12", "--seeds=0,1", f"--out={tmp_path}")
    names = [row for row in miniature.ROWS if row != "one"] + ["ours_short"]  # half, at 4 frames
    assert runs == [f"{name}-{seed}" for seed in (0, 1) for name in names]
    tree = json.loads((tmp_path / "reproduce.json").read_text())
    assert [row["row"] for row in tree["rows"]] == names * 2
    assert "network 2 of 16: scaled-0" in capsys.readouterr().out
    assert (tmp_path / "miniature_sweeps.png").exists() and (tmp_path / "reproduce.md").exists()

    runs.clear()
    (tmp_path / "units" / "unet-1.json").unlink()
    launch("reproduce", "--steps=12", "--seeds=0,1", f"--out={tmp_path}")
    assert runs == ["unet-1"]
    with pytest.raises(ConfigError, match="holds a study of other settings; give another --out"):
        launch("reproduce", "--steps=13", "--seeds=0", f"--out={tmp_path}")


@pytest.mark.faults
def test_a_study_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(
    runs, disk, monkeypatch, capsys
):
    folder, run, ballast = disk(2 << 20), units.run, []
    left = {2: 0, 8: 16 << 10}  # bytes, when so many networks were trained

    def filling(unit_, text, progress):
        if len(runs) in left:
            ballast.append(fill(folder, leave=left[len(runs)]))
        return run(unit_, text, progress)

    monkeypatch.setattr(units, "run", filling)
    flags = "--steps=12", "--seeds=0", f"--out={folder / 'out'}"
    with pytest.raises(StorageError, match="cannot write .*units/half-0.json: No space") as full:
        launch("reproduce", *flags)
    assert "\n" not in str(full.value)
    done = sorted(path.name for path in (folder / "out" / "units").iterdir())
    assert done == sorted(f"{name}.json" for name in runs[:2])
    ballast.pop().unlink()

    with pytest.raises(StorageError, match="cannot write .*out/.*: No space left on device"):
        launch("reproduce", *flags)
    assert runs[3] == runs[2] and len(runs) == 9 and len(set(runs)) == 8  # one was not written
    assert "against" in capsys.readouterr().out  # the tables
    assert not list((folder / "out").glob(".*"))
    ballast.pop().unlink()

    launch("reproduce", *flags)
    assert len(runs) == 9 and (folder / "out" / "miniature_sweeps.png").exists()


def test_a_damaged_network_is_trained_again_and_damaged_settings_are_one_line(
    runs, tmp_path, capsys
):
    flags = "--steps=12", "--seeds=0", f"--out={tmp_path}"
    launch("reproduce", *flags)
    runs.clear()
    unit, study = tmp_path / "units" / "edm-0.json", tmp_path / "study.json"
    unit.write_bytes(unit.read_bytes().replace(b"1.5", b"2.5"))
    launch("reproduce", *flags)
    assert runs == ["edm-0"]
    says = "edm-0.json is not as it was written: its digest differs; that network is trained again"
    assert says in capsys.readouterr().out
    for content in (b"{", b"[]", b'{"configs": {}}', study.read_bytes().replace(b"3.0", b"9.0")):
        study.write_bytes(content)
        with pytest.raises(StorageError, match=r"study.json .*; give another --out"):
            launch("reproduce", *flags)
