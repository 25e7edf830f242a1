"""Config -> optimizer, schedule and the numbers of the loss (paper Table 9)."""

import optax

from snapvideo_jax.build.config import Config
from snapvideo_jax.training import optim
from snapvideo_jax.training import step as training_step


def schedule(config: Config) -> optax.Schedule:
    """Step -> learning rate."""
    wanted = config.optimizer
    return optim.warmup_cosine(wanted.learning_rate, wanted.warmup_steps, config.training.steps)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Clipping, then LAMB or Adam."""
    wanted = config.optimizer
    return optim.make_optimizer(
        wanted.name,
        schedule(config),
        wanted.b1,
        wanted.b2,
        wanted.eps,
        wanted.weight_decay,
        wanted.clip_norm,
    )


def objective(config: Config) -> training_step.Objective:
    """The numbers of the loss."""
    diffusion = config.diffusion
    return training_step.Objective(
        P_mean=diffusion.P_mean,
        P_std=diffusion.P_std,
        label_dropout=diffusion.label_dropout,
        self_conditioning=diffusion.self_conditioning,
    )
