"""Loss and gradients of the networks are those of one device on every mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build, trees
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models import layers
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules
from snapvideo_jax.planner import hlo
from tests import tiny

MESHES = [
    (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2),
    *(pytest.param(sizes, marks=pytest.mark.slow)
      for sizes in ((8, 1, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8))),
]  # fmt: skip
VOCABULARY = 20
B = 56  # examples of FIT; neither 56 nor 56 / 8 is a size of anything else there


def fit():
    """An upsampler of 8 groups and 8 heads: scanned, rematerialized, with text trained along."""
    config = tiny.get_upsampler_config()
    config.model.remat, config.model.conditioning_channels = "block", 32
    config.training.batch_size = B
    config.model.fit.update(
        patch=4,
        group=(2, 2, 4),
        latents=32,
        patch_channels=64,
        latent_channels=64,
        blocks=2,
    )
    config.model.text_encoder.update(channels=64, heads=8, hidden=32)
    return config


def unet():
    config = tiny.get_config()
    config.model.name, config.model.conditioning_channels = "unet", 32
    config.model.unet.update(
        channels=64, multipliers=(1, 2), residual_blocks=1, attention_levels=(2,), head_channels=8
    )
    config.model.text_encoder.update(channels=64, heads=8, hidden=32)
    return config


def dit(factorised=False):
    """An upsampler of 8 heads, 2 frames and 64 places."""
    config = tiny.get_upsampler_config()
    config.model.update(name="dit", conditioning_channels=32)
    config.model.dit.update(channels=64, blocks=2, head_channels=8, factorised=factorised)
    config.model.text_encoder.update(channels=64, heads=8, hidden=32)
    return config


def factorised_dit():
    return dit(factorised=True)


def parameter(path, leaf):
    """Random numbers that keep activations near unit size."""
    rng = np.random.default_rng(sum(map(ord, trees.path_name(path))))
    drawn = rng.normal(size=leaf.shape).astype(np.float32)
    name = path[-1].key
    fan_in = np.prod(leaf.shape[-4 if "conv" in trees.path_name(path) else -2 : -1])
    return (
        1 + 0.1 * drawn if name == "scale" else drawn * (fan_in**-0.5 if "kernel" in name else 0.5)
    )


def batch_of(config):
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(1, 20, s.shape).astype(s.dtype)
        for name, s in build.abstract_batch(config).items()
    }
    batch["video"] = rng.integers(0, 256, batch["video"].shape).astype(np.uint8)
    batch["text_mask"][:, 4:] = False
    return batch


def gradient(config, sizes, devices):
    """Returns (loss, gradients) of a self-conditioned pass, on the host, and the program's text."""
    config.model.dropout, rows = 0.0, jnp.arange(config.training.batch_size)
    config.mesh.update(dict(zip(meshes.AXES, sizes, strict=True)))
    program = build.train_program(config, VOCABULARY, devices)
    mesh, denoiser = program.mesh, program.denoiser

    def loss(params, batch):
        x, log_sigma, conditions, _ = denoiser.inputs(params, batch)
        F = denoiser.self_conditioned_F(
            params,
            x,
            log_sigma + rows / len(rows),
            (conditions.drop_text(False), conditions),
            rows % 4 != 0,
            (jax.random.key(0), jax.random.key(1)),
        )
        return jnp.mean((F - x) ** 2)

    def slope(params, batch):
        with rules.activations_on(mesh):
            return jax.value_and_grad(loss)(params, batch)

    abstract = build.abstract_params(config, denoiser, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    params = jax.tree_util.tree_map_with_path(parameter, abstract)
    split = {name: leaf.sharding for name, leaf in program.abstract_batch.items()}
    args = jax.device_put(params, placed), jax.device_put(batch_of(config), split)
    run = jax.jit(slope, out_shardings=(meshes.replicated(mesh), placed))
    compiled = run.lower(*args).compile()
    return jax.tree.map(np.asarray, compiled(*args)), compiled.as_text()


@pytest.fixture(scope="module")
def alone():
    """Network -> (loss, gradients) on one device."""
    return functools.cache(lambda make: gradient(make(), (1, 1, 1, 1), jax.devices()[:1])[0])


def assert_same(actual, expected):
    (loss, gradients), (true_loss, true_gradients) = actual, expected
    assert loss == pytest.approx(true_loss, rel=1e-5)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(true_gradients)]
    assert np.mean(np.array(sizes) > 1e-3 * max(sizes)) > 0.9  # there is something to compare
    for (path, a), b, size in zip(
        jax.tree_util.tree_leaves_with_path(gradients),
        jax.tree.leaves(true_gradients),
        sizes,
        strict=True,
    ):
        assert np.abs(a - b).max() <= 1e-5 * max(size, 1e-3 * max(sizes)), trees.path_name(path)


def assert_sends_no_activations(text):
    """Asserts that only kernels and their gradients are sent, apart from the ids of the text."""
    arrays = [array for sent in hlo.collectives(text) for array in sent.shapes]
    floats = [array for array in arrays if array.startswith(("f32", "bf16"))]
    sizes = {size for array in floats for size in re.findall(r"\d+", array.partition("[")[2])}
    assert len(floats) > 50 and {str(B), str(B // 8)}.isdisjoint(sizes), floats


@pytest.mark.parametrize("sizes", MESHES)
def test_fit_on_a_mesh_of_data_fsdp_group_tensor(alone, sizes):
    actual, text = gradient(fit(), sizes, jax.devices())
    assert_same(actual, alone(fit))
    if sizes == (1, 8, 1, 1):
        assert_sends_no_activations(text)


def test_gradients_of_kernels_summed_as_a_whole_are_the_same(alone, monkeypatch):
    monkeypatch.setattr(layers, "SUM_WHOLE_ABOVE", 0)
    assert_same(gradient(fit(), (1, 2, 2, 2), jax.devices())[0], alone(fit))


def wholes(tokens):
    """Counts how often a 64 x 32 kernel or its gradient is put on all of 8 devices as a whole."""
    layer, x = layers.dense(32, jnp.float32, "other", use_bias=False), jnp.zeros((8, tokens, 64))
    mesh = meshes.make_mesh(dict(data=2, fsdp=4, group=1, tensor=1), jax.devices())

    def slope(params):
        with rules.activations_on(mesh):
            return jax.grad(lambda params: layer.apply(params, x).sum())(params)

    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))
    return str(jax.make_jaxpr(slope)(params)).count("f32[64,32] = sharding_constraint")


def test_the_gradient_of_a_kernel_is_summed_as_a_whole_where_a_device_has_many_inputs():
    """The limit is 16 inputs a number of the kernel: here 512 tokens a device."""
    assert [wholes(tokens) for tokens in (1, 512, 513, 4096)] == [1, 1, 2, 2]


def test_the_unet_on_a_mesh_of_data_fsdp_tensor(alone):
    assert_same(gradient(unet(), (2, 2, 1, 2), jax.devices())[0], alone(unet))


@pytest.mark.parametrize("make", [dit, factorised_dit])
@pytest.mark.parametrize(
    "sizes", [(1, 2, 2, 2), pytest.param((2, 1, 4, 1), marks=pytest.mark.slow)]
)
def test_a_dit_on_a_mesh_whose_groups_split_its_row_of_tokens(alone, make, sizes):
    assert_same(gradient(make(), sizes, jax.devices())[0], alone(make))


def test_the_unet_has_no_groups_to_split():
    with pytest.raises(ConfigError, match="mesh.group=2: a U-Net has nothing to split"):
        gradient(unet(), (4, 1, 2, 1), jax.devices())
