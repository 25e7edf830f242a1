"""The upsampler starts from the first stage: what is copied, what is carried over, what is new."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import Conditions
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.training import graft
from snapvideo_jax.trees import path_name

WIDTHS = dict(
    patch_channels=8, latents=8, latent_channels=8, blocks=1, global_layers=1,
    patch_head_channels=4, latent_head_channels=4, conditioning_channels=8, table_std=1.0,
    attend=dot_product_attention,
)  # fmt: skip
STAGE1 = FIT(video=(2, 4, 8), grouping=Grouping(2, (2, 2, 2)), **WIDTHS)  # 1 x 1 x 2 groups of 4
SAME = FIT(video=(2, 4, 8), grouping=Grouping(2, (2, 2, 2)), **WIDTHS)
LARGE = FIT(video=(2, 16, 32), grouping=Grouping(2, (2, 4, 8)), **WIDTHS)  # 1 x 2 x 2 groups of 2


def given(network, low_res):
    video = jnp.asarray(np.random.default_rng(1).normal(size=(1, *network.video, 3)), jnp.float32)
    text, mask = jnp.ones((1, 3, 4)), jnp.ones((1, 3), bool)
    told = Conditions(jnp.ones(1), jnp.full((1, 2), 9), text, mask)
    if low_res:
        told = dataclasses.replace(told, low_res=video[..., ::-1], augmentation=jnp.full(1, 0.3))
    return video, jnp.zeros(1), told, jnp.zeros((1, *network.latent_shape))


def params(network, low_res, seed):
    """Random leaves of the right shapes; initializing for real would only cost a compilation."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *given(network, low_res))["params"]
    random = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)
    return {"network": jax.tree.map(draw, shapes)}


@pytest.fixture(scope="module")
def stage1():
    return params(STAGE1, False, 0)


def leaves(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_at_equal_size_the_upsampler_starts_as_the_first_stages_function(stage1):
    grafted = graft.graft(stage1, params(SAME, True, 1), STAGE1, SAME)
    video, noise, told, latents = given(SAME, True)
    without_level = dataclasses.replace(told, augmentation=None)
    F, _ = SAME.apply({"params": grafted["network"]}, video, noise, without_level, latents)
    expected, _ = STAGE1.apply({"params": stage1["network"]}, *given(STAGE1, False))
    np.testing.assert_allclose(F, expected, atol=1e-5)  # values up to 5; sums of other lengths


def test_only_the_leaves_that_know_the_size_change_and_only_the_level_is_new(stage1):
    fresh = params(LARGE, True, 1)
    old, new, own = leaves(stage1), leaves(graft.graft(stage1, fresh, STAGE1, LARGE)), leaves(fresh)
    carried = {"network/stem/kernel", "network/latent_table", "network/positions"}
    for name, leaf in new.items():
        if name not in old:
            assert name.startswith("network/tokens/augmentation/")
            np.testing.assert_array_equal(leaf, own[name])
        elif name not in carried:
            np.testing.assert_array_equal(leaf, old[name])
    assert {name: leaf.shape for name, leaf in new.items()} == {
        name: leaf.shape for name, leaf in own.items()
    }


def test_x_keeps_its_rows_of_the_stem_and_the_low_resolution_starts_at_zero():
    kernel = jnp.arange(2 * 2 * 3 * 5.0).reshape(12, 5) + 1
    wide = graft.widen_stem(kernel, 24 * 5)
    assert wide.shape == (24, 5)
    np.testing.assert_array_equal(wide.reshape(4, 6, 5)[:, :3], kernel.reshape(4, 3, 5))
    assert (wide.reshape(4, 6, 5)[:, 3:] == 0).all()
    convolution = jnp.arange(3 * 3 * 3 * 5.0).reshape(3, 3, 3, 5) + 1  # a U-Net's
    wide = graft.widen_stem(convolution, 3 * 3 * 6 * 5)
    np.testing.assert_array_equal(wide[:, :, :3], convolution)
    assert wide.shape == (3, 3, 6, 5) and (wide[:, :, 3:] == 0).all()


def test_a_groups_latents_go_to_the_groups_that_cover_its_part_of_the_picture():
    table = jnp.arange(2 * 8.0).reshape(2, 8, 1)  # 1 x 1 x 2 groups of 8
    split = graft.split_latents(table, (1, 1, 2), (1, 2, 4))[..., 0]  # 1 x 2 x 4 groups of 2
    assert split.shape == (8, 2)
    for r in range(2):
        for c in range(4):
            old_group, part = c // 2, 2 * r + c % 2
            expected = table[old_group, 2 * part : 2 * part + 2, 0]
            np.testing.assert_array_equal(split[4 * r + c], expected)


def test_stretched_positions_keep_a_ramp_across_the_group():
    ramp = np.tile(np.arange(4.0), (2, 3, 1))[..., None].reshape(24, 1)  # frames, rows, columns
    stretched = graft.resize_positions(jnp.asarray(ramp), (2, 3, 4), (2, 6, 8)).reshape(2, 6, 8)
    np.testing.assert_allclose(stretched[1, 2, 1:-1], np.arange(0.25, 2.9, 0.5), atol=1e-6)


@pytest.mark.parametrize("after", [(1, 1, 3), (1, 4, 8), (1, 1, 1)])
def test_groups_that_cannot_share_the_latents_are_refused(after):
    with pytest.raises(ConfigError, match="training.start_from"):
        graft.split_latents(jnp.zeros((2, 8, 1)), (1, 1, 2), after)


def test_a_first_stage_of_other_widths_is_refused_by_name(stage1):
    wider = FIT(
        video=(2, 4, 8), grouping=Grouping(2, (2, 2, 2)), **(WIDTHS | {"latent_channels": 16})
    )
    with pytest.raises(ConfigError, match=r"training.start_from: network/\S+ is .* there"):
        graft.graft(stage1, params(wider, True, 1), STAGE1, wider)
    deeper = params(STAGE1, False, 0)
    deeper["network"]["extra"] = {"kernel": jnp.zeros((1, 1))}
    with pytest.raises(ConfigError, match="nothing here takes its network/extra/kernel"):
        graft.graft(deeper, params(SAME, True, 1), STAGE1, SAME)
