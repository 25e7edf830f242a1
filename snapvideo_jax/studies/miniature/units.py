"""What the miniature trains: a row of a table and a seed at a time, each from nothing.

All units of a seed see the same examples in the same order. They do not depend on each other, so a
study that was stopped does again only the one that it was in.
"""

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.sampling.trained import Trained
from snapvideo_jax.studies.learner import Learner, training_batches
from snapvideo_jax.studies.miniature import scoring

FIT, UNET = "ours", "unet"
FIT_EQUAL_VIDEOS = "ours_short"  # FIT for as many steps as the U-Net takes
TIMED_STEPS = 6  # of FIT and U-Net in turns; the first one warms up


class Unit(NamedTuple):
    """A network to train and score. sweep: whether guidance and the sampler's steps are swept."""

    row: str
    config: Config
    sweep: bool

    @property
    def name(self) -> str:
        """Returns row and seed."""
        return f"{self.row}-{self.config.seed}"


def units(rows: Mapping[str, Config], unet_steps: int, seeds: Sequence[int]) -> list[Unit]:
    """Returns all units, seed by seed, so that a study that ends early has whole seeds.

    rows: name -> config, with FIT and UNET. unet_steps: as many as take the time of FIT's steps.
    """
    rows = dict(rows) | {
        UNET: with_steps(rows[UNET], unet_steps),
        FIT_EQUAL_VIDEOS: with_steps(rows[FIT], unet_steps),
    }
    return [
        Unit(row, _with_seed(config, seed), sweep=row == FIT)
        for seed in seeds
        for row, config in rows.items()
    ]


def steps_in_equal_time(fit: Config, unet: Config, text: build.Text) -> dict[str, float]:
    """Times steps of both in turns; returns the ms of each, and the steps that the U-Net gets."""
    learners = [Learner(config, text.vocabulary_size) for config in (fit, unet)]
    for batch in training_batches(fit, text, TIMED_STEPS):
        for learner in learners:
            learner.step(batch)
    fit_ms, unet_ms = (statistics.median(learner.step_ms[1:]) for learner in learners)
    steps = max(2, round(fit.training.steps * fit_ms / unet_ms))
    return {"fit_ms": fit_ms, "unet_ms": unet_ms, "unet_steps": steps}


def run(unit: Unit, text: build.Text, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Trains and scores a unit; returns its figures as JSON has them.

    progress: (steps done, of how many).
    """
    config, steps = unit.config, unit.config.training.steps
    learner = Learner(config, text.vocabulary_size)
    for done, batch in enumerate(training_batches(config, text, steps), start=1):
        learner.step(batch)
        progress(done, steps)
    model = _trained(learner, text)
    figures = {
        "row": unit.row,
        "seed": config.seed,
        "steps": steps,
        "videos": steps * config.training.batch_size,
        "seconds": sum(learner.step_ms) / 1e3,
        **learner.size(),
        "kind": "measured",
        "device": jax.devices()[0].device_kind,
        "losses": scoring.losses(model),
        **scoring.scores(model),
    }
    if unit.sweep:
        figures |= scoring.sweeps(model)
    return figures


def _trained(learner: Learner, text: build.Text) -> Trained:
    """Returns the learner's EMA as a model to sample from."""
    return Trained(
        config=learner.config,
        step=learner.config.training.steps,
        denoiser=learner.program.denoiser,
        mesh=learner.program.mesh,
        text=text,
        params=learner.state.ema,
    ).cast_kernels()


def with_steps(config: Config, steps: int) -> Config:
    """Returns a copy of the config for a run of `steps`, of which warm-up takes at most a tenth."""
    changed = copy.deepcopy(config)
    changed.training.steps = steps
    changed.optimizer.warmup_steps = min(config.optimizer.warmup_steps, max(1, steps // 10))
    return changed


def _with_seed(config: Config, seed: int) -> Config:
    changed = copy.deepcopy(config)
    changed.seed = seed
    return changed
