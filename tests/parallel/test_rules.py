"""The sharding table against the real parameter trees: FIT 500M with an encoder, the U-Net."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from configs import base, dit_factorised_500m, unet_284m
from snapvideo_jax import build, trees
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.layers import constrain
from snapvideo_jax.parallel import rules
from snapvideo_jax.parallel.mesh import make_mesh
from snapvideo_jax.parallel.rules import SPLIT


def mesh_of(**sizes):
    return make_mesh(dict(data=1, fsdp=1, group=1, tensor=1) | sizes, jax.devices())


def config(**sizes):
    config = base.get_config()
    config.mesh.update(sizes)
    return config


@pytest.fixture(scope="module")
def state():
    """The train state, abstract, with a sharding at every leaf."""
    return build.train_program(config(data=1, fsdp=2, group=2, tensor=2), 32_000).abstract_state


@pytest.fixture(scope="module")
def others():
    """The parameters of FIT's rivals, abstract, with a sharding at every leaf: name -> leaf."""
    leaves = {}
    for config in (unet_284m.get_config(), dit_factorised_500m.get_config()):
        mesh = build.training_mesh(config)
        leaves |= by_name(build.abstract_params(config, build.denoiser(config, 0, mesh), mesh))
    return leaves


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {trees.path_name(path): leaf for path, leaf in leaves}


def test_every_parameter_has_exactly_one_rule(state, others):
    parameters = by_name(state.params), others
    assert min(map(len, parameters)) > 100
    for name in (*parameters[0], *parameters[1]):
        matching = [pattern for pattern, _ in rules.RULES if re.search(f"(^|/){pattern}$", name)]
        assert len(matching) == 1, (name, matching)


def test_leaves_of_one_layer_name_and_shape_are_split_alike(state, others):
    """So their squares are added where they lie (`optim.global_norm`)."""
    axes = collections.defaultdict(set)
    for name, leaf in (by_name(state.params) | others).items():
        axes[tuple(name.split("/")[-2:]), leaf.shape].add(leaf.sharding.spec)
    assert max(map(len, axes.values())) == 1


def test_every_rule_is_used(state, others):
    names = [*by_name(state.params), *others]
    for pattern, _ in rules.RULES:
        assert any(re.search(f"(^|/){pattern}$", name) for name in names), pattern


def test_moments_and_ema_lie_where_their_parameter_lies(state):
    parameters, ema = by_name(state.params), by_name(state.ema)
    moments = {
        name: leaf
        for name, leaf in by_name(state.opt_state).items()
        if re.search("/(mu|nu)/", name)
    }
    assert {n: leaf.sharding for n, leaf in ema.items()} == {
        n: leaf.sharding for n, leaf in parameters.items()
    }
    assert len(moments) == 2 * len(parameters)
    for name, leaf in moments.items():
        parameter = parameters[re.split("/(?:mu|nu)/", name)[1]]
        assert leaf.sharding == parameter.sharding and leaf.shape == parameter.shape


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("network/blocks/read/attention/q/kernel", (None, SPLIT, "tensor")),
        ("network/blocks/global3/attention/o/kernel", (None, ("tensor", *SPLIT), None)),
        ("network/blocks/write/feed_forward/up/bias", (None, "tensor")),
        ("network/latent_table", ("group", None, "fsdp")),
        ("network/tokens/text/kernel", (None, SPLIT)),
        ("text_encoder/attention0/q/kernel", (SPLIT, "tensor")),
        ("text_encoder/token_table/embedding", (None, SPLIT)),
    ],
)
def test_parameters_lie_as_the_table_says(state, name, spec):
    assert by_name(state.params)[name].sharding.spec == PartitionSpec(*spec)


def test_nearly_all_of_the_state_is_split(state):
    """At fsdp 2 x tensor 2 x group 2 a device holds little more than an eighth."""
    leaves = jax.tree.leaves((state.params, state.ema, state.opt_state))
    whole = sum(leaf.size for leaf in leaves)
    on_one_device = sum(_size(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    assert on_one_device / whole < 0.14


def _size(shape):
    return jax.ShapeDtypeStruct(shape, "uint8").size


def test_scalars_lie_on_every_device(state):
    assert state.step.sharding.spec == PartitionSpec()


@pytest.mark.parametrize(
    ("sizes", "axis", "size", "nearest"),
    [
        (dict(fsdp=8), "fsdp", 10, 10),
        (dict(fsdp=4, data=2), "fsdp", 10, 5),
        (dict(tensor=8), "tensor", 6, 6),
        (dict(tensor=8), "tensor", 9, 9),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_the_nearest(sizes, axis, size, nearest):
    shape = (size, 8) if axis == "fsdp" else (8, size)
    with pytest.raises(ConfigError) as error:
        rules.spec_for("params/network/blocks/read/attention/q/kernel", shape, mesh_of(**sizes))
    product = "mesh.fsdp x mesh.group" if axis == "fsdp" else f"mesh.{axis}"
    assert f"{product}={sizes[axis]} does not divide {size}" in str(error.value)
    assert str(error.value).endswith(f"the nearest {product} that does is {nearest}")


def test_a_mesh_that_cannot_split_the_model_is_refused_before_compiling():
    wide = config(data=1, tensor=8)
    wide.model.text_encoder.update(heads=3, head_channels=4)
    with pytest.raises(ConfigError, match="text_encoder/attention0/k/kernel.* is (6|12)$"):
        build.train_program(wide, 32_000)


@pytest.mark.parametrize(
    ("name", "shape"), [("params/network/new/kernel", (4, 4)), ("params/network/up/kernel", (4,))]
)
def test_a_parameter_without_a_rule_is_refused(name, shape):
    with pytest.raises(ConfigError, match="no sharding rule for"):
        rules.spec_for(name, shape, mesh_of(data=8))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((24, 16), ("fsdp", None)), ((16, 33), ("fsdp", None)), ((8, 8), ("fsdp", None)),
     ((6, 40), (None, "fsdp")), ((7,), (None,)), ((), ())],
)  # fmt: skip
def test_a_published_encoder_is_split_along_the_largest_axis_that_divides(shape, spec):
    assert rules.largest_axis(shape, mesh_of(fsdp=8)).spec == PartitionSpec(*spec)


def test_names_of_activations_reach_the_compiler():
    mesh = mesh_of(data=8)

    def pinned(x):
        with rules.activations_on(mesh):
            return constrain(x, ("batch", None))

    assert "sharding_constraint" in jax.jit(pinned).lower(jnp.ones((8, 8))).as_text()
