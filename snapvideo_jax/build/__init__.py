"""Config -> data, modules and programs: the only reader of configs.

Use it as `build.train_program(config, ...)`; which file makes what is said here.
"""

from snapvideo_jax.build.checks import (
    check,
    check_without_data,
)
from snapvideo_jax.build.config import (
    Config,
)
from snapvideo_jax.build.data import (
    Source,
    Text,
    TextSettings,
    as_batch,
    feed_spec,
    frame_rates,
    source,
    text,
    text_settings,
    vocabulary_path,
    world,
)
from snapvideo_jax.build.model import (
    DTYPES,
    denoiser,
    network,
    padded_video,
)
from snapvideo_jax.build.programs import (
    NetworkProgram,
    SamplerArguments,
    SamplerProgram,
    TrainProgram,
    abstract_batch,
    abstract_model,
    abstract_params,
    blank_batch,
    counting_mesh,
    mesh_of_run,
    network_program,
    sampler_arguments,
    sampler_program,
    text_dropout,
    train_program,
    training_mesh,
    with_arithmetic,
    with_batch_size,
    with_video,
    without_recompute,
)
from snapvideo_jax.build.recipe import (
    objective,
    optimizer,
    sampler_settings,
    schedule,
)

__all__ = [
    "check",
    "check_without_data",
    "Config",
    "Source",
    "Text",
    "TextSettings",
    "as_batch",
    "feed_spec",
    "frame_rates",
    "source",
    "text",
    "text_settings",
    "vocabulary_path",
    "world",
    "DTYPES",
    "denoiser",
    "network",
    "padded_video",
    "NetworkProgram",
    "SamplerArguments",
    "SamplerProgram",
    "TrainProgram",
    "abstract_batch",
    "abstract_model",
    "abstract_params",
    "blank_batch",
    "counting_mesh",
    "network_program",
    "mesh_of_run",
    "sampler_arguments",
    "sampler_program",
    "text_dropout",
    "train_program",
    "training_mesh",
    "with_arithmetic",
    "with_batch_size",
    "with_video",
    "without_recompute",
    "objective",
    "optimizer",
    "sampler_settings",
    "schedule",
]
