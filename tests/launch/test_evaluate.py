"""Evaluations of a trained run: sweeps, resuming, protocols, and comparing two results."""

import json

import pytest
from absl import flags

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.evaluation import noise_levels
from tests.in_process import launch


def evaluate(run, folder, *flags):
    """The report that is written, beside what the flags ask for."""
    out = folder / "report.json"
    cache = f"--cache={folder / 'cache'}"
    launch("evaluate", f"--checkpoint={run}", f"--out={out}", cache, *flags)
    assert not (folder / "report.json.parts").exists()
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def swept(trained_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    plot = folder / "scores.png"
    flags = "--num_samples=4", "--steps=2,3", "--guidance=0,1.5", f"--plot={plot}"
    return evaluate(trained_folder, folder, *flags), plot


def test_a_sweep_has_a_row_for_every_combination_and_the_report_of_the_first(swept):
    report, plot = swept
    rows = report["sweep"]
    combinations = [(2, 0.0), (2, 1.5), (3, 0.0), (3, 1.5)]
    assert [(row["steps"], row["guidance"]) for row in rows] == combinations
    assert rows[0]["oracle"] == report["oracle"]
    assert report["choices"]["sampling"]["first"]["steps"] == 2
    assert all(row["oracle"]["n"] == row["oracle"]["held_out"]["n"] == 4 for row in rows)
    assert len({row["oracle"]["clutter"] for row in rows}) == 4  # each was sampled by itself
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_one_combination_scores_as_it_does_in_a_sweep(swept, trained_folder, tmp_path, capsys):
    flags = "--num_samples=4", "--steps=3", "--guidance=1.5"
    report = evaluate(trained_folder, tmp_path, *flags)
    assert report["oracle"] == swept[0]["sweep"][3]["oracle"]
    assert report["values"] == swept[0]["sweep"][3]["values"]
    printed = capsys.readouterr().out
    assert "8/8 videos" in printed and "chance" in printed
    assert "left out: random_conv needs 65 samples and real videos" in printed
    expected = {"flicker", "speed", "dynamic_degree", *noise_levels.NAMES, "held out: all"}
    assert expected <= set(report["values"])


@pytest.mark.parametrize(
    "flag, says",
    [("--steps=8,many", "--steps"), ("--steps=8,0", "0 is not"), ("--guidance=", "--g")],
)
def test_what_is_no_list_of_numbers_is_a_flag_error(tmp_path, flag, says):
    with pytest.raises(flags.Error, match=says):
        launch("evaluate", "--checkpoint=no/such", "--out=o", flag)


def test_a_plot_of_no_sweep_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match="--plot draws a sweep; give several"):
        launch("evaluate", "--checkpoint=no/such", "--out=o", "--plot=p.png", "--steps=8")
