"""The scaling study: same examples for all, held-out captions, training's own loss."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes as studied
from snapvideo_jax import build
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.diffusion import edm
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.studies.scaling import plots, report, study
from tests import tiny

CONFIG = tiny.get_config()


def test_each_size_is_larger_than_the_one_before_and_the_same_in_all_families():
    def shape(config):
        mesh = build.counting_mesh()
        return build.abstract_params(config, build.denoiser(config, 64, mesh), mesh)

    counts = {
        family: [
            study.cost.parameters(
                shape(study.resize(studied.get_config(), family, size, 30))["network"]
            )
            for size in study.SIZES
        ]
        for family in study.FAMILIES
    }
    unets = counts["unet"]
    for family, sizes in counts.items():
        assert sizes == sorted(sizes) and np.allclose(sizes, unets, rtol=0.1), family
    assert unets[-1] > 8 * unets[0]


class Counting:
    """A learner that notes what it is shown."""

    def __init__(self):
        self.seen = []

    def step(self, batch):
        self.seen.append(batch)


def test_networks_that_take_fewer_steps_pause_between_them_and_see_the_first_batches():
    slow, fast = ("unet", 1), ("fit", 1)
    learners, rounds = {slow: Counting(), fast: Counting()}, []
    noted = lambda done, of: rounds.append((done, of, len(learners[slow].seen)))
    study.train(learners, {slow: 3, fast: 9}, iter(range(9)), noted)
    assert learners[slow].seen == [0, 1, 2] and learners[fast].seen == [*range(9)]
    assert rounds[-1] == (9, 9, 3) and [slow for _, _, slow in rounds] == [
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        3,
    ]


@dataclasses.dataclass(frozen=True)
class Wrong(Denoiser):
    """Knows the clean videos, and is wrong by `by`, with latents that are ones from the first."""

    clean: tuple = ()
    by: float = 0.0

    def conditions(self, params, batch):
        return None

    def F(self, params, x_sigma, log_sigma, conditions, latents, dropout_key=None):
        x = self.encode(jnp.asarray(self.clean[0]))
        sigma = edm.expand(jnp.exp(log_sigma), x)
        eps = (x_sigma - x / self.sigma_in) / sigma
        v = edm.velocity(x, sigma, eps, self.sigma_data)
        missing = self.by * (2 - jnp.mean(latents))  # 1 in a second pass, else 2
        return edm.c_nrm(sigma, self.sigma_data) * v + missing, jnp.ones_like(latents)


def wrong(by, shown):
    right = build.denoiser(CONFIG, 64, build.counting_mesh())
    fields = {f.name: getattr(right, f.name) for f in dataclasses.fields(right)}
    return Wrong(**fields, clean=(shown["video"],), by=by)


def test_the_loss_is_trainings_over_the_density_of_sigma_and_uses_a_first_passs_latents():
    """An error of 1 everywhere has the loss 1, whatever weight each sigma has."""
    config = tiny.get_config()
    config.diffusion.sigma_in = 4.0
    shown = {"video": np.full((64, *build.abstract_batch(CONFIG)["video"].shape[1:]), 9, np.uint8)}
    right, off = (
        study.losses(config, dataclasses.replace(wrong(by, shown), sigma_in=4.0), {}, shown)
        for by in (0.0, 1.0)
    )
    assert max(right) < 1e-6
    assert math.isclose(np.mean(off), 1, rel_tol=0.01)
    assert off == sorted(off, reverse=True) and off[0] > 1.2  # the weight falls with sigma
    assert study.losses(config, wrong(1.0, shown), {}, shown) != off


def test_bins_are_equally_likely_in_training():
    edges = [study._quantile(CONFIG, i / 6) for i in range(1, 6)]
    drawn = np.random.default_rng(0).normal(-1.2, 1.2, 60_000)
    counts = np.bincount(np.searchsorted(edges, drawn))
    assert np.allclose(counts / 10_000, 1, atol=0.05)


@pytest.mark.parametrize(
    ("sizes", "steps", "says"),
    [
        ([1, 5], 9, "--sizes=1,5: choose from 1,2,3,4"),
        ([2, 2], 9, "each once"),
        ([1], 1, "--steps=1"),
    ],
)
def test_what_cannot_be_studied_is_refused(sizes, steps, says):
    with pytest.raises(ConfigError, match=says):
        study.check(["fit"], sizes, steps)


def example_row(family, size, loss):
    return {
        **{"family": family, "size": size, "kind": "measured", "device": "cpu"},
        **{"parameters": 10**5 * size, "text_encoder_parameters": 10, "gflop_per_video": size / 9},
        **{"steps": 7, "seconds": 0.014},
        **{"ms_per_step": 2.0, "ms_per_step_min": 1.0, "ms_per_step_max": 3.0},
        **{"held_out_loss": loss, "held_out_loss_by_bin": [loss] * 6},
    }


STUDY = {
    "rows": [example_row(f, s, 0.5 / s) for f in ("fit", "unet") for s in (1, 2)],
    **{
        "bin_edges": [1, 2, 3, 4, 5],
        "steps": 7,
        "equal": "steps",
        "batch": 8,
        "held_out_videos": 4,
    },
    **{"versions": {"jax": "0"}, "date": "today", "command": "python -m launch.scaling"},
}


def test_the_report_says_what_was_measured_and_how():
    text = report.markdown(STUDY, {"scaling_loss.png": b""})
    for phrase in ("7 steps of 8 videos, the same 56", "| FIT 2   |", "0.2500", "below 1.0"):
        assert phrase in text
    assert "measured on cpu; jax 0; today; `python -m launch.scaling`" in text
    assert "![scaling_loss](scaling_loss.png)" in text
    text = report.markdown(STUDY | {"equal": "seconds"}, {})
    assert "The slowest network took 7 steps of 8 videos, each of the others as many as fit" in text


def test_pictures_have_a_curve_a_family_and_one_a_network():
    loss, bins = plots.loss(STUDY), plots.bins(STUDY)
    for axes in loss.axes:
        assert [line.get_label() for line in axes.lines] == ["FIT", "U-Net"]
        assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0.25]] * 2
    assert list(loss.axes[0].lines[0].get_xdata()) == [1e5, 2e5]
    labels = [label.get_text() for label in loss.axes[0].get_xticklabels()]
    assert "0.1 M" in labels and "0.2 M" in labels  # also where no power of ten is in sight
    (axes,) = bins.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5] * 6, [0.25] * 6] * 2
    assert all(png.startswith(b"\x89PNG") for png in plots.pngs(STUDY).values())
