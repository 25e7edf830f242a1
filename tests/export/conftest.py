"""Toy models of each kind, exported with all that an export holds, and inputs to run them on."""

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.data.text import train_vocabulary
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.export import export_folder, stablehlo
from snapvideo_jax.generator import SamplerSettings
from snapvideo_jax.sampling.generate import request
from snapvideo_jax.trees import path_name
from tests import tiny, tiny_dit, tiny_unet

SIGMA = 0.7
PROMPTS = ["a red circle moves left", "a blue triangle"]


def make_config(kind):
    """A run's config, with all that the sampler can do."""
    makers = {
        "fit": tiny.get_config,
        "stored": tiny.get_config,  # reads states of a published encoder
        "upsampler": tiny.get_upsampler_config,
        "unet": tiny_unet.get_config,
        "dit": tiny_dit.get_config,
        "joint dit": lambda: tiny_dit.get_config(factorised=False),
    }
    config = copy.deepcopy(makers[kind]())
    config.sampling.update(steps=4, guidance=2.0, guidance_low=0.5, threshold=0.9, sigma_max=20.0)
    if kind == "stored":
        config.model.text_encoder.update(source="stored", channels=24)
    if kind == "fit":  # two blocks tell a wrong order; rows below the picture are cropped
        config.model.fit.blocks = 2
        config.data.update(height=12, pad_rows=4)
    return config


def random_params(denoiser, config):
    """Parameters of which none is 0."""

    def draw(path, leaf):
        rng = np.random.default_rng(sum(path_name(path).encode()))
        around = 1 if path[-1].key == "scale" else 0
        fan_in = np.prod(leaf.shape[-4:-1]) if path[-1].key == "kernel" else 16
        if path[-1].key == "kernel" and len(leaf.shape) == 3:  # stacked over the blocks
            fan_in = leaf.shape[-2]
        return jnp.asarray(around + rng.standard_normal(leaf.shape) / fan_in**0.5, jnp.float32)

    blank = build.blank_batch(config)
    shapes = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), blank))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@dataclasses.dataclass
class Model:
    """An exported model, as this package has it; `inputs` is a batch to denoise."""

    folder: Path
    denoiser: Denoiser
    settings: SamplerSettings
    params: Any
    request: dict
    inputs: dict

    def denoise(self, latents):
        """Our D and latents at a level where neither the skip nor F is all."""
        return self.D(self.params, self.inputs, latents)

    @functools.cached_property
    def D(self):
        """(params, inputs, latents) -> D and latents, compiled."""

        @jax.jit
        def denoise(params, inputs, latents):
            conditions = self.denoiser.conditions(params, inputs)
            if self.denoiser.low_res_size is not None:
                low_res = inputs["low_res"] / 127.5 - 1
                noise = inputs["augmentation"], inputs["low_res_noise"]
                conditions = self.denoiser.with_low_res(conditions, low_res, *noise)
            sigma = jnp.float32(SIGMA)
            return self.denoiser.D(params, inputs["x_sigma"], sigma, conditions, latents)

        return denoise

    def latents(self):
        """Latents as of an earlier call; () for a network without."""
        shape = self.denoiser.network.latent_shape
        rng = np.random.default_rng(3)
        return () if shape is None else rng.standard_normal((2, *shape)).astype(np.float32)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """(kind, whether with StableHLO) -> the model, made at the first call."""
    make = lambda kind, programs: make_model(kind, tmp_path_factory.mktemp(kind), programs)
    return functools.cache(make)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(
    scope="session", params=["fit", "stored", "upsampler", "unet", "dit", slow("joint dit")]
)
def exported(request, model_of):
    """Each kind in turn."""
    return model_of(request.param, False)


@pytest.fixture(
    scope="session",
    params=["fit", slow("stored"), slow("upsampler"), slow("unet"), slow("dit"), slow("joint dit")],
)
def programs(request, model_of):
    """Each kind in turn, with StableHLO."""
    return model_of(request.param, True)


@pytest.fixture(scope="session")
def fit_programs(model_of):
    """A first stage, with StableHLO."""
    return model_of("fit", True)


def make_text(config, folder):
    """How captions enter a model, and the file of its vocabulary; stored states have none."""
    channels, length = config.model.text_encoder.channels, config.data.text_length
    if config.model.text_encoder.source == "stored":
        states = np.random.default_rng(2).standard_normal((len(PROMPTS), length, channels))
        mask = np.arange(length) < np.array([[3], [length]])
        entries = {"text": states.astype(jnp.bfloat16), "text_mask": mask}
        return build.Text(lambda captions: dict(entries), 0, ""), None
    vocabulary = folder / "vocabulary.model"
    train_vocabulary(build.source(config, lambda path, why: None).captions(), vocabulary)
    return build.text(config, vocabulary), vocabulary


def make_model(kind, folder, programs):
    """Writes a model of random parameters as launch.export does."""
    config = make_config(kind)
    text, vocabulary = make_text(config, folder)
    denoiser = build.denoiser(config, text.vocabulary_size, build.counting_mesh())
    params, settings = random_params(denoiser, config), build.sampler_settings(config)
    files = export_folder.torch_model()
    if programs:
        stored = export_folder.stored(params, "float32")
        files |= stablehlo.artifacts(denoiser, settings, stored, build.abstract_batch(config))
    out = folder / "exported"
    json_config = json.loads(config.to_json())
    export_folder.write(out, json_config, 7, params, vocabulary, files=files)

    rng = np.random.default_rng(1)
    T, H, W = denoiser.video_shape
    entries = request(PROMPTS, text, settings.frame_interval, (H, W))
    inputs = {"x_sigma": rng.standard_normal((2, *denoiser.x_shape)).astype(np.float32)}
    if denoiser.low_res_size is not None:
        shape = 2, T, *denoiser.low_res_size, 3
        entries["low_res"] = rng.integers(0, 256, shape).astype(np.uint8)
        inputs["augmentation"] = np.array([0.3, 0.6], np.float32)
        inputs["low_res_noise"] = rng.standard_normal(shape).astype(np.float32)
    return Model(out, denoiser, settings, params, entries, entries | inputs)
