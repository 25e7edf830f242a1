"""The config of a command that reads data, but neither trains nor encodes captions."""

from typing import Any

from absl import flags

from snapvideo_jax import build


def checked() -> Any:
    """Returns --config; raises ConfigError if no training could start from it.

    Whether text states are stored does not matter.
    """
    config = flags.FLAGS.config
    config.model.text_encoder.source = "trained"
    build.check(config)
    return config
