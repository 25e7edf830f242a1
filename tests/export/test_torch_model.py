"""The PyTorch file computes what our models compute, from the same folder and the same noise."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from snapvideo_jax import generator
from snapvideo_jax.export import stablehlo
from snapvideo_jax.trees import leaves_by_name
from tests.export.conftest import PROMPTS, SIGMA, slow

TOLERANCE = 1e-4


@pytest.fixture
def model(exported):
    """The exported folder, loaded by the file within it."""
    file = exported.folder / "torch_model.py"
    spec = importlib.util.spec_from_file_location("torch_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(exported.folder)


def tensors(batch):
    return {name: tensor(leaf) for name, leaf in batch.items()}


def tensor(leaf):
    if leaf.dtype == jnp.bfloat16:
        return torch.tensor(leaf.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(np.asarray(leaf))


def as_torch(latents):
    return () if isinstance(latents, tuple) else torch.tensor(np.asarray(latents))


@torch.no_grad()
def denoise(model, inputs, latents):
    batch = tensors(inputs)
    x = batch.pop("x_sigma")
    return model.denoise(x, SIGMA, model.conditions(batch), as_torch(latents))


def test_the_denoiser_equals_ours_with_latents_and_without(exported, model):
    for latents in (exported.latents(), exported.denoiser.no_latents(2)):
        D, new_latents = denoise(model, exported.inputs, latents)
        expected, expected_latents = exported.denoise(latents)
        np.testing.assert_allclose(D, expected, atol=TOLERANCE)
        if not isinstance(latents, tuple):
            np.testing.assert_allclose(new_latents, expected_latents, atol=TOLERANCE)
    assert float(D.std()) > 0.1


def sample_both(exported, model, **changes):
    """The same noise through both samplers: (ours, PyTorch's)."""
    settings = dataclasses.replace(exported.settings, **changes)
    seeds = jnp.array([7, 8], jnp.int32)
    streams = generator.Streams(seeds, jnp.zeros_like(seeds))
    batch = tensors(exported.request)
    if "low_res" in batch:
        noise = streams.normal("low_res", batch["low_res"].shape[1:])
        batch["low_res_noise"] = torch.tensor(np.asarray(noise))
        batch["augmentation"] = torch.full((2,), settings.augmentation)
    noise = torch.tensor(np.asarray(streams.normal("x", exported.denoiser.x_shape)))
    sample = jax.jit(functools.partial(stablehlo.sample, exported.denoiser, settings))
    ours = sample(leaves_by_name(exported.params), exported.request, seeds)
    return np.asarray(ours), model.sample(batch, noise, **changes).numpy()


@pytest.mark.parametrize(
    "exported", ["fit", slow("upsampler"), slow("unet"), slow("dit")], indirect=True
)
def test_the_sampler_makes_the_same_video_of_the_same_noise(exported, model):
    differ(*sample_both(exported, model))


PLAIN = dict(oscillate=False, threshold=0.0, solver="euler")
FAST = dict(oscillate=False, solver="dpmpp_2m", guidance_sigma_min=0.5, guidance_sigma_max=10.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [PLAIN, FAST, FAST | {"steps": 2}, {"guidance": 0.0}, {"solver": "euler"}, {"steps": 1}],
)
@pytest.mark.parametrize("exported", ["fit"], indirect=True)
def test_other_settings_make_the_same_video_too(exported, model, changes):
    differ(*sample_both(exported, model, **changes))


@pytest.mark.parametrize("exported", ["fit"], indirect=True)
def test_every_setting_changes_the_video(exported, model):
    batch, noise = tensors(exported.request), torch.ones(2, *exported.denoiser.x_shape)
    first = model.sample(batch, noise)
    others = {"guidance": 0.0, "steps": 3, "guidance_low": 2.0, "guidance_sigma_min": 0.5}
    for name, value in (PLAIN | others | {"guidance_sigma_max": 10.0}).items():
        assert not torch.equal(model.sample(batch, noise, **{name: value}), first), name


def differ(ours, theirs):
    """Checks that no number is off by more than one grey level, and few by one."""
    difference = np.abs(ours.astype(int) - theirs)
    assert ours.shape == theirs.shape and ours.std() > 10
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


@pytest.mark.parametrize("exported", ["fit", slow("unet"), slow("dit")], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_half_the_bytes_and_is_near(exported, model, dtype):
    D, _ = denoise(model, exported.inputs, exported.latents())
    half, _ = denoise(model.to(dtype), exported.inputs, exported.latents())
    assert {p.dtype for p in model.parameters()} == {dtype} and half.dtype == torch.float32
    error = float((half - D).std() / D.std())
    assert 0 < error < (0.03 if dtype == torch.bfloat16 else 0.005)


@pytest.mark.parametrize("exported", ["fit"], indirect=True)
def test_autocast_is_near_too(exported, model):
    D, _ = denoise(model, exported.inputs, exported.latents())
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = denoise(model, exported.inputs, exported.latents())
    assert half.dtype == torch.float32 and 0 < float((half - D).std() / D.std()) < 0.03


@pytest.mark.parametrize("exported", ["fit"], indirect=True)
def test_what_the_sampler_and_the_encoder_lack_is_refused(exported, model, monkeypatch):
    with pytest.raises(ValueError, match="solver='ddim' must be one of"):
        model.sample(tensors(exported.request), torch.ones(1), solver="ddim")
    with pytest.raises(ValueError, match="oscillate=True: solver=dpmpp_2m extrapolates"):
        model.sample(tensors(exported.request), torch.ones(1), solver="dpmpp_2m")
    with pytest.raises(ValueError, match="{'step'} are no settings of the sampler; those are"):
        model.sample(tensors(exported.request), torch.ones(2, *exported.denoiser.x_shape), step=1)
    monkeypatch.setitem(model.config["model"]["text_encoder"], "source", "stored")
    with pytest.raises(ValueError, match="reads stored states"):
        model.request(PROMPTS)


@pytest.mark.parametrize("exported", ["fit", "upsampler"], indirect=True)
def test_requests_are_the_tokens_of_ours(exported, model):
    ours = tensors(exported.request)
    for name, tensor in model.request(PROMPTS).items():
        assert torch.equal(tensor.to(ours[name].dtype), ours[name]), name
    assert not model.request([""])["text_mask"].any()
    assert model.request(["red " * 99])["text_ids"][0, -1] == 1


def test_parameters_of_another_model_are_refused_by_name(exported, model):
    state = model.state_dict()
    state["network.other"] = state.pop("network.tokens.text.bias")
    with pytest.raises(RuntimeError, match="network.tokens.text.bias"):
        model.load_state_dict(state)
