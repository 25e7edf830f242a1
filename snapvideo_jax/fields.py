"""What each field of a config may be: its type, its range, and how many values a tuple has.

configs/base.py holds the defaults beside their units and sources; a test compares the two lists.
Upper ends are what no machine of today holds, or what float32 cannot tell from infinity; what only
several fields decide is in build/checks.py.
"""

import difflib
from typing import Any

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.kinds import OneOf, Real, Row, Several, Text, Truth, Whole, shown

SEED = Whole(0, 2**31 - 1)  # a key of JAX and of numpy alike
STEP = Whole(0, 2**31 - 1)  # TrainState.step is an int32
STEPS = Whole(1, 100_000_000)
MANY = Whole(1, 1_000_000_000)
NONE_OR_MANY = Whole(0, 1_000_000_000)
PIXELS = Whole(1, 16_384)
CHANNELS = Whole(1, 131_072)
BATCH = Whole(1, 2**24)
LOOPS = Whole(1, 1024)  # of Python, while a program is traced
AXIS = Whole(1, 2**20, special=(-1,))
FRACTION = Real(0.0, 1.0)
BELOW_ONE = Real(0.0, 0.999999)  # and in float32 too
RATE = Real(0.001, 1000.0)  # frames per second
SCALE = Real(1e-4, 1e4)  # of pixels and of noise

SOURCES = OneOf(("shapes", "folder", "tfds"))
ROWS = Whole(0, 2**24)  # of a batch

FIELDS = {
    "seed": SEED,
    "data.source": SOURCES,
    "data.path": Text(),
    "data.num_frames": Whole(1, 4096),
    "data.height": PIXELS,
    "data.width": PIXELS,
    "data.pad_rows": Whole(0, 16_384),
    "data.aspect": OneOf(("crop", "pad")),
    "data.random_crop": Truth(),
    "data.random_flip": Truth(),
    "data.frame_rates": Several(RATE, 1, 64),
    "data.image_fraction": FRACTION,
    "data.text_length": Whole(1, 65_536),
    "data.vocabulary": Text(),
    "data.text_states": Text(),
    "data.low_res": Several(PIXELS, 0, 2),
    "data.workers": LOOPS,
    "data.prefetch": LOOPS,
    "data.mixture": Several(Row((SOURCES, Text(), ROWS, ROWS)), 0, 64),
    "data.decode_seconds": Real(0.01, 86_400.0),
    "data.stall_seconds": Real(0.01, 86_400.0),
    "data.max_bad_fraction": FRACTION,
    "data.tfds.split": Text(),
    "data.tfds.images": Text(),
    "data.tfds.video": Text(),
    "data.tfds.caption": Text(),
    "data.tfds.frame_rate": Text(),
    "data.shapes.radius": Real(0.01, 16_384.0),
    "data.shapes.shapes": Several(Text(), 1, 64),
    "data.shapes.colors": Several(Text(), 1, 64),
    "data.shapes.directions": Several(Text(), 1, 64),
    "data.shapes.speeds": Several(Row((Text(), Real(0.001, 1e6))), 1, 64),
    "data.shapes.background": Real(-1.0, 1.0),
    "data.shapes.spread": FRACTION,
    "model.name": OneOf(("fit", "unet", "dit")),
    "model.conditioning_channels": CHANNELS,
    "model.dropout": BELOW_ONE,
    "model.remat": OneOf(("none", "dots", "offload", "block")),
    "model.dtype": OneOf(("float32", "bfloat16")),
    "model.attention": OneOf(("fastest", "plain")),
    "model.fit.patch": PIXELS,
    "model.fit.group": Several(PIXELS, 3, 3),
    "model.fit.patch_channels": CHANNELS,
    "model.fit.latents": CHANNELS,
    "model.fit.latent_channels": CHANNELS,
    "model.fit.blocks": LOOPS,
    "model.fit.global_layers": Whole(0, 64),
    "model.fit.patch_head_channels": CHANNELS,
    "model.fit.latent_head_channels": CHANNELS,
    "model.fit.table_std": SCALE,
    "model.fit.write_scale": SCALE,
    "model.fit.unroll": LOOPS,
    "model.unet.channels": CHANNELS,
    "model.unet.multipliers": Several(Whole(1, 1024), 1, 12),
    "model.unet.residual_blocks": Whole(1, 32),
    "model.unet.attention_levels": Several(Whole(1, 2048), 0, 12),
    "model.unet.head_channels": CHANNELS,
    "model.dit.patch": PIXELS,
    "model.dit.channels": CHANNELS,
    "model.dit.blocks": LOOPS,
    "model.dit.head_channels": CHANNELS,
    "model.dit.factorised": Truth(),
    "model.dit.unroll": LOOPS,
    "model.text_encoder.source": OneOf(("trained", "stored")),
    "model.text_encoder.channels": CHANNELS,
    "model.text_encoder.heads": LOOPS,
    "model.text_encoder.head_channels": CHANNELS,
    "model.text_encoder.hidden": CHANNELS,
    "model.text_encoder.layers": Whole(1, 128),
    "diffusion.sigma_data": SCALE,
    "diffusion.sigma_in": SCALE,
    "diffusion.image_sigma_in": Real(1e-4, 1e4, special=(0.0,)),
    "diffusion.P_mean": Real(-10.0, 10.0),
    "diffusion.P_std": Real(1e-3, 4.0),
    "diffusion.label_dropout": FRACTION,
    "diffusion.self_conditioning": FRACTION,
    "optimizer.name": OneOf(("lamb", "adam")),
    "optimizer.learning_rate": Real(1e-12, 100.0),
    "optimizer.warmup_steps": Whole(0, 100_000_000),
    "optimizer.b1": BELOW_ONE,
    "optimizer.b2": BELOW_ONE,
    "optimizer.eps": Real(1e-30, 1.0),  # a smaller one is 0 in float32, and 0 / 0 no number
    "optimizer.weight_decay": Real(0.0, 10.0),
    "optimizer.clip_norm": Real(1e-9, 1e9),
    "training.steps": STEPS,
    "training.batch_size": BATCH,
    "training.accumulate": BATCH,
    "training.ema_half_life": Real(1e-3, 1e9),
    "training.ema_ramp": Real(1e-6, 1e9),
    "training.start_from": Text(),
    "training.max_skipped": MANY,
    "sampling.steps": Whole(1, 100_000),
    "sampling.solver": OneOf(("heun", "euler", "dpmpp_2m")),
    "sampling.guidance": Real(0.0, 1000.0),
    "sampling.guidance_low": Real(0.0, 1000.0),
    "sampling.guidance_sigma_min": Real(0.0, 1e6),
    "sampling.guidance_sigma_max": Real(1e-6, 1e9),
    "sampling.oscillate": Truth(),
    "sampling.threshold": FRACTION,
    "sampling.reconstruction": Real(0.0, 1000.0),
    "sampling.S_churn": Real(0.0, 1e6),
    "sampling.S_min": Real(0.0, 1e6),
    "sampling.S_max": Real(1e-6, 1e9),
    "sampling.S_noise": Real(1e-3, 10.0),
    "sampling.sigma_min": Real(1e-6, 1e6),
    "sampling.sigma_max": Real(1e-6, 1e6),
    "sampling.rho": Real(0.5, 100.0),
    "sampling.augmentation": FRACTION,
    "sampling.frame_rate": Real(0.001, 1000.0, special=(0.0,)),  # 0: a still image
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.group": AXIS,
    "mesh.tensor": AXIS,
    "checkpoint.every_steps": MANY,
    "checkpoint.keep_last": MANY,
    "checkpoint.keep_every": NONE_OR_MANY,
    "log.every_seconds": Real(1e-6, 1e9),
    "log.metrics_every": MANY,
    "log.samples_every": NONE_OR_MANY,
    "log.sample_prompts": Several(Text(), 0, 1024),
    "log.evaluate_every": NONE_OR_MANY,
    "log.evaluate_samples": MANY,
    "log.evaluate_path": Text(),
}
SECTIONS = {name.rpartition(".")[0] for name in FIELDS} - {""}


def check(config: Any) -> None:
    """Raises ConfigError unless `config`, a ConfigDict or a dict, has just these fields, each of
    its kind."""
    values = flatten(config) if hasattr(config, "items") else {}
    missing = dict.fromkeys(_first_missing(name, values) for name in FIELDS if name not in values)
    if missing:
        names = sorted(missing, key=lambda name: name not in SECTIONS)
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        raise ConfigError(
            f"no config: it lacks {', '.join(names[:6])}{more}; start from configs/base.py"
        )
    for name, value in values.items():
        if name not in FIELDS:
            raise ConfigError(unknown(name))
        if not FIELDS[name].holds(value):
            raise ConfigError(must_be(name, value))


def must_be(name: str, value: Any) -> str:
    """Says that the field `name` cannot be `value`, and what it can be."""
    return f"{name}={shown(value)} must be {FIELDS[name]}"


def unknown(name: str) -> str:
    """Says that there is no field `name`, and which is the nearest.

    That is a field with the last name in another section, if there is one, or the one that is
    spelled most alike, however far.
    """
    last = name.rpartition(".")[2]
    elsewhere = [field for field in FIELDS if field.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(name[:200], elsewhere or FIELDS, n=1, cutoff=0)[0]
    return f"there is no field {shown(name)[1:-1]}; the nearest is {nearest}"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns "section.field" -> value of a nested dict or ConfigDict."""
    flat = {}
    for key, value in tree.items():
        inner = hasattr(value, "items")
        flat.update(flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return flat


def _first_missing(name: str, values: dict[str, Any]) -> str:
    """Returns the field `name`, or the section that is not there and would hold it."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        section = ".".join(parts[:depth])
        if not any(there.startswith(f"{section}.") for there in values):
            return section
    return name
