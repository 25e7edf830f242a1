"""Refuses a config that cannot work, before anything is compiled or written.

Each refusal is a ConfigError of one line that names the field, its value and what would do.
"""

import math

from ml_collections import ConfigDict

from snapvideo_jax.build.config import Config
from snapvideo_jax.build.data import world
from snapvideo_jax.build.model import DTYPES, network
from snapvideo_jax.data import order
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.layers import dot_product_attention

# The names that a field may have.
KNOWN = {
    "data.source": ("shapes", "folder", "tfds"),
    "model.name": ("fit", "unet"),
    "model.remat": ("none", "dots", "offload", "block"),
    "model.dtype": tuple(DTYPES),
    "model.text_encoder.source": ("trained", "stored"),
    "optimizer.name": ("lamb", "adam"),
}
# Fields that may be 0 (or negative, or any text); every other number must be above 0.
MAY_BE_ZERO = (
    "seed", "data.pad_rows", "data.image_fraction", "data.shapes.spread", "model.dropout",
    "model.fit.global_layers", "diffusion.label_dropout", "diffusion.self_conditioning",
    "diffusion.image_sigma_in", "optimizer.warmup_steps", "optimizer.weight_decay",
    "optimizer.b1", "optimizer.b2",
    "sampling.guidance", "sampling.guidance_low", "sampling.threshold", "sampling.reconstruction",
    "sampling.S_churn", "sampling.S_min", "sampling.augmentation", "checkpoint.keep_every",
    "log.samples_every",
)  # fmt: skip
SIGNED = ("diffusion.P_mean", "data.shapes.background", "mesh.")
FRACTIONS = (
    "data.image_fraction", "data.shapes.spread", "model.dropout", "diffusion.label_dropout",
    "diffusion.self_conditioning", "optimizer.b1", "optimizer.b2", "sampling.augmentation",
    "sampling.threshold",
)  # fmt: skip


def check(config: Config) -> None:
    """Raises ConfigError for a number out of range, an unknown name, or sizes that do not fit."""
    for name, value in _leaves(config):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(name, number)
        if name in KNOWN and value not in KNOWN[name]:
            known = ", ".join(KNOWN[name])
            raise ConfigError(f"{name}={value!r} is not known; choose one of {known}")
    _check_data(config)
    if config.optimizer.warmup_steps >= config.training.steps:
        raise ConfigError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} must be below "
            f"training.steps={config.training.steps}"
        )
    for name in ("b1", "b2"):  # at 1 a moment never leaves 0, and is divided by 1 - 1
        if config.optimizer[name] == 1:
            raise ConfigError(f"optimizer.{name}=1.0 must be below 1")
    if config.sampling.sigma_min >= config.sampling.sigma_max:
        raise ConfigError("sampling.sigma_min must be below sampling.sigma_max")
    network(config, dot_product_attention)


def _check_data(config: Config) -> None:
    data = config.data
    if data.source == "folder" and not data.path:
        raise ConfigError("data.source=folder needs --config.data.path=DIR, a folder of videos")
    if data.source == "tfds" and not data.path:
        raise ConfigError(
            "data.source=tfds needs --config.data.path=BUILD, a folder or name/config:version"
        )
    for part in data.mixture:
        _check_part(part)
    sets = [(data.source, data.path), *(part[:2] for part in data.mixture)]
    if any(source == "shapes" for source, _ in sets):
        world(config)
    if config.model.text_encoder.source == "stored" and not data.text_states:
        raise ConfigError(
            "model.text_encoder.source=stored needs --config.data.text_states=DIR, made by "
            "python -m launch.prepare embed"
        )
    full = (data.height, data.width)
    if data.low_res and not (len(data.low_res) == 2 and all(map(int.__lt__, data.low_res, full))):
        raise ConfigError(f"data.low_res={data.low_res} must be (height, width) below {full}")
    order.image_rows(config.training.batch_size, data.image_fraction)


def _check_part(part: tuple) -> None:
    """Raises ConfigError for a part of data.mixture that is no data set with its rows."""
    whole = isinstance(part, tuple) and [type(x) for x in part] == [str, str, int, int]
    known = KNOWN["data.source"]
    if not whole or part[0] not in known or min(part[2:]) < 0 or not any(part[2:]):
        raise ConfigError(
            f"data.mixture={part!r}: expected (source, path, images, videos) with one of "
            f"{', '.join(known)} and how many rows of each batch are from it"
        )
    if part[0] != "shapes" and not part[1]:
        raise ConfigError(f"data.mixture={part!r}: source {part[0]} needs a path")


def _leaves(config: Config, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_number(name: str, value: float) -> None:
    low_ok = value >= 0 if name in MAY_BE_ZERO else value > 0 or name.startswith(SIGNED)
    high_ok = value <= 1 or name not in FRACTIONS
    if math.isfinite(value) and low_ok and high_ok:
        return
    least = "at least 0" if name in MAY_BE_ZERO else "above 0"
    raise ConfigError(
        f"{name}={value} must be {least}{' and at most 1' if name in FRACTIONS else ''}"
    )
