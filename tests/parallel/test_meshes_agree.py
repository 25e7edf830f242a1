"""Loss and gradients of the networks are those of one device on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import attention, rules
from snapvideo_jax.parallel import mesh as meshes
from tests import tiny

MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 8, 1), (1, 1, 1, 8)]
VOCABULARY = 20


def fit():
    """An upsampler of 8 groups and 8 heads: scanned, rematerialized, with text trained along."""
    config = tiny.get_upsampler_config()
    config.model.remat, config.model.conditioning_channels = "block", 32
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


def parameter(path, leaf):
    """Random numbers that keep activations near unit size."""
    rng = np.random.default_rng(sum(map(ord, rules.path_name(path))))
    drawn = rng.normal(size=leaf.shape).astype(np.float32)
    name = path[-1].key
    fan_in = np.prod(leaf.shape[-4 if "conv" in rules.path_name(path) else -2 : -1])
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
    """(loss, gradients) of one self-conditioned pass, as host arrays."""
    config.model.dropout = 0.0
    config.mesh.update(dict(zip(meshes.AXES, sizes, strict=True)))
    mesh = build.mesh(config, devices)
    denoiser = build.denoiser(config, VOCABULARY, attention.best(mesh))

    def loss(params, batch):
        with rules.activations_on(mesh):
            x, log_sigma, given, _ = denoiser.inputs(params, batch)
            F = denoiser.self_conditioned_F(
                params,
                x,
                log_sigma + jnp.arange(8.0) / 8,
                (given.drop_text(False), given),
                jnp.arange(8) % 4 != 0,
                (jax.random.key(0), jax.random.key(1)),
            )
            return jnp.mean((F - x) ** 2)

    abstract = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), build.blank_batch(config)))
    placed = rules.shardings(abstract, mesh)
    params = jax.tree_util.tree_map_with_path(parameter, abstract)
    split = build.batch_shardings(config, mesh)
    args = jax.device_put(params, placed), jax.device_put(batch_of(config), split)
    run = jax.jit(jax.value_and_grad(loss), out_shardings=(meshes.replicated(mesh), placed))
    return jax.tree.map(np.asarray, run(*args))


@pytest.fixture(scope="module")
def alone():
    return {make: gradient(make(), (1, 1, 1, 1), jax.devices()[:1]) for make in (fit, unet)}


def assert_same(found, expected):
    (loss, slopes), (true_loss, true_slopes) = found, expected
    assert loss == pytest.approx(true_loss, rel=1e-5)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(true_slopes)]
    assert np.mean(np.array(sizes) > 1e-3 * max(sizes)) > 0.9  # there is something to compare
    for (path, a), b, size in zip(
        jax.tree_util.tree_leaves_with_path(slopes),
        jax.tree.leaves(true_slopes),
        sizes,
        strict=True,
    ):
        assert np.abs(a - b).max() <= 1e-5 * max(size, 1e-3 * max(sizes)), rules.path_name(path)


@pytest.mark.parametrize("sizes", MESHES)
def test_fit_on_a_mesh_of_data_fsdp_group_tensor(alone, sizes):
    assert_same(gradient(fit(), sizes, jax.devices()), alone[fit])


def test_the_unet_on_a_mesh_of_data_fsdp_tensor(alone):
    assert_same(gradient(unet(), (2, 2, 1, 2), jax.devices()), alone[unet])


def test_the_unet_has_no_groups_to_split():
    with pytest.raises(ConfigError, match="mesh.group=2: only FIT has patch groups"):
        gradient(unet(), (4, 1, 2, 1), jax.devices())
