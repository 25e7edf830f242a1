"""Refuses a config that cannot work, before anything is compiled or written.

Each refusal is a ConfigError of one line that names the field, its value and what would do. What
one field may be is in fields.py; here is what several decide.
"""

from snapvideo_jax import fields, storage
from snapvideo_jax.build import recipe
from snapvideo_jax.build.config import Config
from snapvideo_jax.build.data import world
from snapvideo_jax.build.model import network, padded_video
from snapvideo_jax.data import order
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.units import size_text

MOST_BYTES = 2**51  # all chips of the largest pods have less
STATE_BYTES = 16  # of a parameter, its two moments and its EMA
# Fields of which the first must be below the second.
BELOW = (
    ("optimizer.warmup_steps", "training.steps"),
    ("sampling.sigma_min", "sampling.sigma_max"),
    ("sampling.S_min", "sampling.S_max"),
)


# Fields that name what is read from the file system; a bucket has to be mounted there.
PLACES = (
    "data.path", "data.vocabulary", "data.text_states", "training.start_from", "log.evaluate_path",
)  # fmt: skip


def check(config: Config, memory: int = MOST_BYTES) -> None:
    """Raises ConfigError for a field that is not of its kind, or sizes that do not fit.

    memory: bytes of all devices.
    """
    fields.check(config)
    values = fields.flatten(config)
    for low, high in BELOW:
        if values[low] >= values[high]:
            raise ConfigError(
                f"{low}={values[low]} must be below {high}={values[high]}; give --config.{low} too"
            )
    for name in PLACES:
        _refuse_remote(name, values[name])
    _check_data(config)
    recipe.sampler_settings(config)  # raises for settings that do not go together
    _check_sizes(config, min(memory, MOST_BYTES))
    network(config, dot_product_attention)


def check_without_data(config: Config) -> Config:
    """Checks a config whose data need not be there, nor be named, yet; returns it with names."""
    config.data.text_states = config.data.text_states or "unnamed"
    if config.data.source != "shapes":
        config.data.path = config.data.path or "unnamed"
    check(config)
    return config


def _check_data(config: Config) -> None:
    data = config.data
    if data.source == "folder" and not data.path:
        raise ConfigError("data.source=folder needs --config.data.path=DIR, a folder of videos")
    if data.source == "tfds" and not data.path:
        raise ConfigError(
            "data.source=tfds needs --config.data.path=BUILD, a folder or name/config:version"
        )
    if data.source == "shapes" and data.path:
        raise ConfigError(
            f"data.path={data.path} is not read by data.source=shapes; for your own videos add "
            "--config.data.source=folder"
        )
    for part in data.mixture:
        _check_part(part)
    sets = [(data.source, data.path), *(part[:2] for part in data.mixture)]
    drawn = [source == "shapes" for source, _ in sets]
    if any(drawn):
        world(config)
        _check_framing(data, all(drawn))
    if data.random_crop and data.aspect == "pad":
        raise ConfigError("data.random_crop=True needs data.aspect=crop: what is padded is not cut")
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
    _check_evaluation(config)


def _check_framing(data: Config, only_shapes: bool) -> None:
    """Raises ConfigError for what would make captions of shapes wrong, or do nothing to them."""
    if data.random_flip:
        raise ConfigError(
            "data.random_flip=True: captions of data.source=shapes say left and right, and a flip "
            "would make them wrong"
        )
    if only_shapes and (data.random_crop or data.aspect != "crop"):
        raise ConfigError(
            "data.random_crop and data.aspect do nothing to data.source=shapes, which is drawn at "
            "the size of training; leave them out"
        )


def _refuse_remote(name: str, path: str) -> None:
    """Raises ConfigError where a field names a bucket."""
    try:
        storage.refuse_remote(path)
    except StorageError as error:
        raise ConfigError(f"{name}: {error}") from error


def _check_part(part: tuple) -> None:
    """Raises ConfigError for a part of data.mixture without a path, or without rows."""
    source, path, images, videos = part
    _refuse_remote("data.mixture", path)
    if images + videos == 0:
        raise ConfigError(f"data.mixture={part!r}: no row of a batch is from it")
    if source != "shapes" and not path:
        raise ConfigError(f"data.mixture={part!r}: source {source} needs a path")


def _check_evaluation(config: Config) -> None:
    if not config.log.evaluate_every:
        return
    if config.data.low_res:
        raise ConfigError(
            "log.evaluate_every evaluates first stages alone; measure an upsampler with "
            "launch.evaluate --upsampler"
        )
    if config.data.source != "shapes" and not config.log.evaluate_path:
        raise ConfigError(
            "log.evaluate_every needs --config.log.evaluate_path=DIR, a folder of captioned videos "
            "to compare with"
        )


def _check_sizes(config: Config, memory: int) -> None:
    """Raises ConfigError where a batch, or the state of a part of the model, is over `memory`.

    No program is traced for it, which takes minutes for models that nobody can hold.
    """
    frames, height, width = padded_video(config)
    fit, unet, dit = config.model.fit, config.model.unet, config.model.dit
    text = config.model.text_encoder
    layers = {
        "fit": ("model.fit.latent_channels", fit.blocks * fit.global_layers, fit.latent_channels),
        "unet": ("model.unet.channels", 1, unet.channels * max(unet.multipliers)),
        "dit": ("model.dit.channels", dit.blocks, dit.channels),
    }
    name, number, channels = layers[config.model.name]
    # 4 and 8 squares: attention's and the feed-forward's kernels; a residual block has 18.
    least = {
        "training.batch_size": config.training.batch_size * frames * height * width * 3,
        name: STATE_BYTES * 12 * number * channels**2,
        "model.text_encoder.hidden": STATE_BYTES * 2 * text.layers * text.channels * text.hidden,
    }
    values = fields.flatten(config)
    for field, size in least.items():
        if size > memory:
            raise ConfigError(
                f"{field}={values[field]} needs {size_text(size)} or more with the other sizes of "
                f"this config, and all devices hold {size_text(memory)}"
            )
