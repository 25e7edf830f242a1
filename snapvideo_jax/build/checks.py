"""Refuses a config that cannot work, before anything is compiled or written.

Each refusal is a ConfigError of one line that names the field, its value and what would do. What
one field may be is in fields.py; here is what several decide.
"""

from snapvideo_jax import fields
from snapvideo_jax.build.config import Config
from snapvideo_jax.build.data import world
from snapvideo_jax.build.model import network, padded_video
from snapvideo_jax.data import order
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.units import size_text

# Bytes that no machine holds: all chips of the largest pods have about half of it.
MOST_BYTES = 2**52
# Fields of which the first must be below the second.
BELOW = (
    ("optimizer.warmup_steps", "training.steps"),
    ("sampling.sigma_min", "sampling.sigma_max"),
    ("sampling.S_min", "sampling.S_max"),
)


def check(config: Config) -> None:
    """Raises ConfigError for a field that is not of its kind, or sizes that do not fit."""
    fields.check(config)
    values = fields.flatten(config)
    for low, high in BELOW:
        if values[low] >= values[high]:
            raise ConfigError(f"{low}={values[low]} must be below {high}={values[high]}")
    _check_data(config)
    _check_sizes(config)
    network(config, dot_product_attention)


def _check_data(config: Config) -> None:
    data = config.data
    if data.source == "folder" and not data.path:
        raise ConfigError("data.source=folder needs --config.data.path=DIR, a folder of videos")
    if data.source == "shapes":
        world(config)
    if config.model.text_encoder.source == "stored" and not data.text_states:
        raise ConfigError(
            "model.text_encoder.source=stored needs --config.data.text_states=DIR, made by "
            "python -m launch.prepare embed"
        )
    full = (data.height, data.width)
    if data.low_res and not (len(data.low_res) == 2 and all(map(int.__lt__, data.low_res, full))):
        raise ConfigError(f"data.low_res={data.low_res} must be (height, width) below {full}")
    if config.log.samples_every and not config.log.sample_prompts:
        raise ConfigError(
            f"log.samples_every={config.log.samples_every} needs log.sample_prompts, what to show"
        )
    order.image_rows(config.training.batch_size, data.image_fraction)


def _check_sizes(config: Config) -> None:
    """Raises ConfigError where a batch, or a part of the parameters, is over MOST_BYTES."""
    frames, height, width = padded_video(config)
    fit, unet, text = config.model.fit, config.model.unet, config.model.text_encoder
    layers = {
        "fit": ("model.fit.latent_channels", fit.blocks * fit.global_layers, fit.latent_channels),
        "unet": ("model.unet.channels", 1, unet.channels * max(unet.multipliers)),
    }
    name, number, channels = layers[config.model.name]
    # 4 and 8 squares: attention's and the feed-forward's kernels; a residual block has 18.
    parameters = 12 * number * channels**2
    floats = {
        "training.batch_size": config.training.batch_size * frames * height * width * 3,
        name: parameters,
        "model.text_encoder.hidden": 2 * text.layers * text.channels * text.hidden,
    }
    values = fields.flatten(config)
    for field, count in floats.items():
        if 4 * count > MOST_BYTES:
            raise ConfigError(
                f"{field}={values[field]} needs {size_text(4 * count)} or more with the other "
                f"sizes of this config, and no machine holds more than {size_text(MOST_BYTES)}"
            )
