"""The settings of JAX and of the environment that decide results, and the values they must have.

Another random generator, another precision or another width of numbers gives other pixels from the
same seed, and makes a good checkpoint look broken. Commands set them; a library's user calls `pin`.
"""

import os
import re

import jax

from snapvideo_jax.errors import ConfigError

PINNED = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,  # the config's model.dtype decides
    "jax_numpy_dtype_promotion": "standard",
    "jax_disable_jit": False,
    "jax_debug_nans": False,  # a step with one is skipped, and counted
    "jax_debug_infs": False,
}
# What only a new process can have otherwise: variable -> pattern of values that change results.
REFUSED = {
    "XLA_FLAGS": r"--xla_cpu_enable_fast_math(?!=(false|0))|--xla_\w*fast_min_max=(true|1)",
    "NVIDIA_TF32_OVERRIDE": r"[^0\s]",
}


def pin() -> None:
    """Sets what decides results, whatever the environment says.

    Raises ConfigError for a variable that cannot be overruled in a running process.
    """
    for name, value in PINNED.items():
        jax.config.update(name, value)
    for variable, pattern in REFUSED.items():
        if match := re.search(pattern, os.environ.get(variable, "")):
            raise ConfigError(
                f"{variable} with {match[0]} changes results and cannot be overruled here; unset it"
            )


def check() -> dict[str, str | bool | int | None]:
    """Returns the settings, for a checkpoint; raises ConfigError unless they are `PINNED`."""
    for name, value in PINNED.items():
        if jax.config.values[name] != value:
            raise ConfigError(
                f"{name}={jax.config.values[name]} changes results; it must be {value}: call "
                "snapvideo_jax.numerics.pin() before anything else"
            )
    return PINNED
