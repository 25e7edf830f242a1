"""Config -> the numbers of training and sampling: optimizer, schedule, loss, sampler."""

import optax

from snapvideo_jax.build.config import Config
from snapvideo_jax.generator import SamplerSettings
from snapvideo_jax.training import optim
from snapvideo_jax.training.step import Objective


def schedule(config: Config) -> optax.Schedule:
    """Returns step -> learning rate."""
    recipe = config.optimizer
    return optim.warmup_cosine(recipe.learning_rate, recipe.warmup_steps, config.training.steps)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Chains clipping and LAMB or Adam."""
    recipe = config.optimizer
    return optim.make_optimizer(
        name=recipe.name,
        schedule=schedule(config),
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
    )


def objective(config: Config) -> Objective:
    """Returns the numbers of the loss."""
    diffusion = config.diffusion
    return Objective(
        P_mean=diffusion.P_mean,
        P_std=diffusion.P_std,
        label_dropout=diffusion.label_dropout,
        self_conditioning=diffusion.self_conditioning,
    )


def sampler_settings(config: Config, **changes: float | str | None) -> SamplerSettings:
    """Returns the config's `sampling` with those `changes` that are not None.

    Raises ConfigError for settings that do not go together.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    return SamplerSettings(**config.sampling.to_dict() | changes)
