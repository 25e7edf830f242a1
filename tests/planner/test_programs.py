"""What the programs of a plan hold and do, on eight CPU devices, against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel.mesh import make_mesh
from snapvideo_jax.planner import cost, programs
from snapvideo_jax.trees import device_bytes
from tests import tiny

VIDEO = 2 * 16 * 16 * 3  # numbers of a video
LATENTS = 4 * 16
DEVICES = 8


def made(kind, get_config=tiny.get_config, mesh=(8, 1, 1), **fields):
    config = get_config()
    config.mesh.update(dict(zip(("data", "fsdp", "group"), mesh, strict=True)))
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return programs.planned(config, kind, jax.devices())


@pytest.fixture(scope="module")
def train():
    return made("train")


@pytest.fixture(scope="module")
def sample():
    """With guidance, from stored text, so that nothing but the network computes products."""
    return made("sample", model__text_encoder__source="stored", mesh=(2, 2, 2))


@pytest.mark.parametrize(
    ("spec", "dtype", "size"),
    [
        (("data", "fsdp"), jnp.float32, 16 * 8 * 4 // 8),
        ((("data", "fsdp"),), jnp.bfloat16, 16 * 8 * 2 // 8),
        ((None, "fsdp"), jnp.uint8, 16 * 8 // 4),
        ((), jnp.float32, 16 * 8 * 4),  # a copy on each
    ],
)
def test_a_device_holds_its_shard_and_a_copy_of_what_is_not_split(spec, dtype, size):
    mesh = make_mesh(dict(data=2, fsdp=4, group=1, tensor=1), jax.devices())
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    leaf = jax.ShapeDtypeStruct((16, 8), dtype, sharding=sharding)
    assert device_bytes(leaf) == size
    assert device_bytes({"a": [leaf, leaf], "b": {"c": leaf}}) == 3 * size


def test_replicas_hold_all_state_and_their_examples(train):
    (numbers,) = {cost.parameters(train.resident[name]) for name in ("parameters", "ema")}
    held = {name: device_bytes(tree) for name, tree in train.resident.items()}
    assert held["parameters"] == held["ema"] == 4 * numbers
    assert held["moments"] == 2 * 4 * numbers + 2 * 4  # LAMB's two, and two counters
    # Of one example: pixels, the interval of its frames and its two source sizes; 8 ids, 8 flags.
    assert {k: device_bytes(v) for k, v in train.inputs.items()} == {
        "batch": VIDEO + 4 + 2 * 4,
        "text": 8 * 4 + 8,
    }
    assert (train.videos, train.calls) == (8, 1)
    assert jax.tree.structure(train.gradients) == jax.tree.structure(train.resident["parameters"])


def test_the_sampler_holds_parameters_three_videos_and_latents(sample):
    state = sample.resident["state"]
    videos = {device_bytes(video) for video in (state.x, state.point, state.D)}
    assert videos == {8 * VIDEO * 4 // DEVICES}
    assert device_bytes(state.carry) == 8 * LATENTS * 4 // DEVICES
    rows = 8 // 4  # of a device; groups share an example's text
    assert {k: device_bytes(v) for k, v in sample.inputs.items()} == {
        "batch": rows * (4 + 2 * 4 + 4),  # interval, source size, stream
        "text": rows * (8 * 16 * 2 + 8),  # states in bfloat16, flags
    }
    assert (sample.videos, sample.calls, sample.gradients) == (8, 2 * 3 - 1, None)


def test_kernels_of_the_sampler_are_in_the_networks_dtype():
    half = made("sample", model__dtype="bfloat16").resident["parameters"]["network"]
    kernels = {path[-1].key: leaf.dtype for path, leaf in jax.tree.leaves_with_path(half)}
    assert kernels["kernel"] == jnp.bfloat16
    assert {str(dtype) for name, dtype in kernels.items() if name != "kernel"} == {"float32"}


def test_euler_asks_once_a_step():
    assert made("sample", sampling__solver="euler").calls == 3


def network_flops():
    config = tiny.get_config()
    config.model.text_encoder.source = "stored"
    one = build.network_program(config, programs.VOCABULARY, jax.devices()[:1])
    return cost.flops(one.call, one.abstract_params, *one.abstract_inputs)


def test_guidance_evaluates_twice_and_without_it_once(sample):
    assert sample.model_flops == sample.flops == 2 * network_flops()
    alone = made("sample", model__text_encoder__source="stored", sampling__guidance=0.0)
    assert alone.model_flops == alone.flops == network_flops()


def test_flops_do_not_depend_on_the_mesh(train):
    assert train.flops == train.model_flops
    split = made("train", mesh=(1, 4, 2), training__accumulate=2)
    assert (split.flops, split.model_flops) == (train.flops, train.model_flops)


def test_remat_computes_more_and_the_model_is_the_same(train):
    block = made("train", model__remat="block")
    assert block.model_flops == train.model_flops
    # A pass without gradient, then one with, whose gradient is two more: of the four one is made
    # again, less stem, head, text encoder and products that no gradient needs.
    assert 1.1 < block.flops / train.flops < 5 / 4


def test_what_an_attention_kernel_computes_again_is_not_the_models(train, monkeypatch):
    from snapvideo_jax.models.layers import dot_product_attention
    from snapvideo_jax.parallel import attention

    again = jax.checkpoint(dot_product_attention)
    for_mesh = attention.for_mesh
    alone = lambda mesh, choice: for_mesh(mesh, choice) if mesh.size == 1 else again
    monkeypatch.setattr(attention, "for_mesh", alone)
    kernel = made("train")
    assert kernel.model_flops == train.model_flops < kernel.flops


def test_the_models_flops_are_counted_where_jax_may_use_no_cpu(train, monkeypatch):
    def none(platform=None):
        raise RuntimeError(f"unknown backend {platform}")

    config, here = tiny.get_config(), jax.devices()
    monkeypatch.setattr(jax, "devices", none)
    assert programs.planned(config, "train", here).model_flops == train.model_flops


def test_an_upsampler_is_no_first_stage_and_a_first_stage_no_upsampler():
    upsampler = made("upsample", tiny.get_upsampler_config)
    assert upsampler.model_flops == made("sample", tiny.get_upsampler_config).model_flops
    low_res = upsampler.inputs["batch"]["low_res"]
    assert (low_res.shape, low_res.dtype) == ((8, 2, 16, 16, 3), np.uint8)
    with pytest.raises(ConfigError) as error:
        made("upsample")
    assert "this config is a first stage; --program=sample is its sampler" == str(error.value)


def test_every_argument_is_resident_or_an_input_or_a_number(train, sample):
    parts = lambda program: sum(program.device_bytes.values())
    assert 0 <= device_bytes(train.arguments) - parts(train) <= 4  # the step's number
    seeds = 4 * 8 // 4
    assert device_bytes(sample.arguments[:4]) - parts(sample) == seeds
