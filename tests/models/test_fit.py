"""FIT against its blocks composed by hand in the paper's order, and what may influence what."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from snapvideo_jax import build
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import ConditioningTokens, Conditions
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.layers import AttentionBlock, FeedForward, dot_product_attention
from snapvideo_jax.models.patches import Grouping, patchify, unpatchify
from snapvideo_jax.models.remat import REMAT
from snapvideo_jax.trees import names

TOY = dict(
    video=(2, 8, 16),
    grouping=Grouping(4, (2, 2, 2)),  # two groups, the left half of the picture and the right
    patch_channels=8,
    latents=4,
    latent_channels=12,
    blocks=2,
    global_layers=1,
    patch_head_channels=4,
    latent_head_channels=4,
    conditioning_channels=8,
    attend=dot_product_attention,
    dropout=0.5,
)
PAPER_3B9 = dict(
    video=(16, 40, 64),
    grouping=Grouping(4, (16, 5, 4)),
    patch_channels=1024,
    latents=768,
    latent_channels=3072,
    blocks=6,
    global_layers=4,
    patch_head_channels=64,
    latent_head_channels=128,
    conditioning_channels=1024,
    attend=dot_product_attention,
)
QUICKLY = {"xla_backend_optimization_level": 0}  # a third of the time to compile


def inputs(model, width=6, seed=0):
    """x, c_noise, conditions, previous latents for two examples."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    mask = jnp.array([[1, 1, 0], [0, 0, 0]], bool)
    conditions = Conditions(
        frame_interval=normal(2) ** 2,
        source_size=jnp.int32([[36, 64], [0, 0]]),
        text=normal(2, 3, width),
        text_mask=mask,
    )
    return normal(2, *model.video, 3), normal(2), conditions, normal(2, *model.latent_shape)


@pytest.fixture(scope="module")
def toy(random_params):
    """The toy: (compiled F and latents from parameters and inputs, random parameters, inputs)."""
    model = FIT(**TOY)
    params = random_params(model, *inputs(model))
    return jax.jit(lambda p, *args: model.apply({"params": p}, *args)), params, inputs(model)


def norm(p, x):
    return nn.LayerNorm(epsilon=1e-6).apply({"params": p}, x)


def by_hand(params, x, c_noise, conditions, previous):
    """The forward pass of the paper's 3.4, block by block and group by group."""
    tokens = ConditioningTokens(8).apply({"params": params["tokens"]}, c_noise, conditions)
    plus = lambda t, param: t + jnp.broadcast_to(param, t.shape)
    linear = lambda name, t: plus(t @ params[name]["kernel"], params[name]["bias"])
    patches = norm(params["stem_norm"], linear("stem", patchify(x, TOY["grouping"])))
    patches = plus(patches, params["positions"])
    memory = FeedForward().apply({"params": params["self_conditioning"]}, previous)
    latents = plus(norm(params["self_conditioning_norm"], memory), params["latent_table"])
    row, groups = (lambda t: t.reshape(2, 4, 12)), (lambda t: t.reshape(2, 2, 2, 12))
    for i in range(2):
        slices = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        layer = lambda heads, name, w=slices: functools.partial(
            AttentionBlock(heads=heads, head_channels=4, attend=dot_product_attention).apply,
            {"params": w[name]},
        )
        latents = groups(layer(2, "attend_conditioning")(row(latents), *tokens))
        read = [layer(2, "read")(latents[:, g], patches[:, g]) for g in range(2)]
        latents = groups(layer(3, "global0")(row(jnp.stack(read, axis=1))))
        write = [layer(2, "write")(patches[:, g], latents[:, g]) for g in range(2)]
        patches = jnp.stack(write, axis=1)
    out = linear("head", norm(params["head_norm"], patches))
    return unpatchify(out, TOY["grouping"], TOY["video"]), latents


def test_it_is_the_papers_order_of_reads_global_layers_and_writes(toy):
    run, params, args = toy
    plain = jax.jit(by_hand, compiler_options=QUICKLY)
    got, expected = run(params, *args), plain(params, *args)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-4)


def test_F_has_the_shape_of_the_video_and_latents_that_of_the_state(toy):
    run, params, args = toy
    F, latents = run(params, *args)
    assert F.shape == args[0].shape
    assert latents.shape == (2, *FIT(**TOY).latent_shape) == (2, 2, 2, 12)


def test_global_layers_carry_pixels_of_one_group_to_the_others(toy):
    run, params, (x, *rest) = toy
    right = x.at[:, :, :, 8:].add(1)
    assert (np.asarray(run(params, x, *rest)[0]) != run(params, right, *rest)[0])[:, :, :, :8].any()


def test_without_global_layers_no_group_sees_another(random_params):
    model = FIT(**TOY | {"global_layers": 0})
    x, *rest = inputs(model)
    params = random_params(model, x, *rest)
    run = jax.jit(lambda video: model.apply({"params": params}, video, *rest)[0])
    right = x.at[:, :, :, 8:].add(1)
    changed = np.asarray(run(x)) != run(right)
    assert not changed[:, :, :, :8].any()
    assert changed[:, :, :, 8:].any()


def test_previous_latents_change_nothing_at_initialization(toy):
    run, _, (x, c_noise, conditions, previous) = toy
    init = jax.jit(FIT(**TOY).init, compiler_options=QUICKLY)
    initial = init(jax.random.key(0), x, c_noise, conditions, previous)["params"]
    F, latents = run(initial, x, c_noise, conditions, previous)
    F0, latents0 = run(initial, x, c_noise, conditions, 0 * previous)
    np.testing.assert_array_equal(F, F0)
    np.testing.assert_array_equal(latents, latents0)
    assert np.asarray(F).any()
    kernels = initial["blocks"]["global0"]["attention"]["q"]["kernel"]
    assert (kernels[0] != kernels[1]).any()  # each block has its own draw


def test_write_scale_shrinks_what_write_adds_at_initialization_and_nothing_else(toy):
    def initial(scale):
        init = jax.jit(FIT(**TOY, write_scale=scale).init, compiler_options=QUICKLY)
        leaves = jax.tree_util.tree_leaves_with_path(init(jax.random.key(0), *toy[2])["params"])
        return {names(path): leaf for path, leaf in leaves}

    whole, tenth = initial(1.0), initial(0.1)
    outputs = {
        ("blocks", "write", "attention", "o", "kernel"),
        ("blocks", "write", "feed_forward", "down", "kernel"),
    }
    assert {path for path in whole if (whole[path] != tenth[path]).any()} == outputs
    for path in outputs:
        np.testing.assert_allclose(tenth[path], 0.1 * whole[path], rtol=1e-5)


def test_previous_latents_matter_once_trained(toy):
    run, params, (x, c_noise, conditions, previous) = toy
    F, F0 = (run(params, x, c_noise, conditions, h)[0] for h in (previous, 0 * previous))
    assert (np.asarray(F) != F0).any()


def test_hidden_text_changes_no_bit_of_F(toy):
    run, params, (x, c_noise, conditions, previous) = toy
    padded = ~conditions.text_mask[..., None]
    other = conditions.replace(text=jnp.where(padded, 1e3, conditions.text))
    before = run(params, x, c_noise, conditions, previous)[0]
    np.testing.assert_array_equal(before, run(params, x, c_noise, other, previous)[0])
    real = conditions.replace(text=conditions.text + jnp.float32([1, 0, 0])[None, :, None])
    changed = np.asarray(before) != run(params, x, c_noise, real, previous)[0]
    np.testing.assert_array_equal(changed.any(axis=(1, 2, 3, 4)), conditions.text_mask.any(axis=1))


def test_dropout_is_in_the_global_layers_alone():
    def draws(global_layers, train):
        model = FIT(**TOY | {"global_layers": global_layers})
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = jax.eval_shape(model.init, rngs, *inputs(model))
        run = lambda v: model.apply(v, *inputs(model), train=train, rngs=rngs)
        return "random_bits" in str(jax.make_jaxpr(run)(variables))

    assert draws(1, train=True)
    assert not draws(1, train=False)
    assert not draws(0, train=True)


def test_bfloat16_leaves_parameters_and_latents_in_float32():
    model = FIT(**TOY | {"dtype": jnp.bfloat16})
    start = lambda: model.init_with_output(jax.random.key(0), *inputs(model))
    (F, latents), variables = jax.eval_shape(start)
    assert F.dtype == jnp.bfloat16 and latents.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (build.network(base.get_config(), dot_product_attention), 495_828_016),
        (FIT(**PAPER_3B9), 3_914_472_496),
    ],
    ids=["500M", "3.9B"],
)
def test_parameter_counts_are_exact(model, count):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs(model, width=1024))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("field", "value", "of", "nearest"),
    [
        ("latents", 5, 2, 4),
        ("patch_channels", 10, 4, 8),
        ("latent_channels", 3, 4, 4),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(field, value, of, nearest):
    with pytest.raises(ConfigError) as error:
        FIT(**TOY | {field: value})
    expected = f"model.fit.{field}={value} must be a multiple of {of}: try {nearest}"
    assert str(error.value) == expected


ALSO = [pytest.param(remat, marks=pytest.mark.slow) for remat in ("none", "block")]


@pytest.mark.parametrize("remat", ["dots", *ALSO])
def test_blocks_that_are_written_out_are_those_of_the_loop(toy, remat):
    _, params, args = toy

    def program(unroll, train=True):
        model = FIT(**TOY | {"blocks": 2, "remat": remat, "unroll": unroll})
        rngs = {"dropout": jax.random.key(2)}
        out = lambda p: model.apply({"params": p}, *args, train=train, rngs=rngs)[0]
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(out(p) ** 2)), compiler_options=QUICKLY)

    assert FIT(**TOY | {"blocks": 2, "unroll": 2}).looped() == FIT(**TOY | {"blocks": 2})
    written, looped = program(2).lower(params), program(1).lower(params)
    loops = lambda lowered: lowered.as_text().count("stablehlo.while")
    assert loops(looped) == loops(written) + 2  # there and back
    sampler = program(2, train=False).lower(params)
    assert loops(sampler) == loops(program(1, train=False).lower(params)) == 2
    pairs = zip(
        *(jax.tree.leaves(program.compile()(params)) for program in (written, looped)), strict=True
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_is_computed_again_in_the_backward_pass_changes_no_value(toy):
    _, params, args = toy

    def program(remat):
        model = FIT(**TOY, remat=remat)
        out = lambda p: jnp.sum(model.apply({"params": p}, *args)[0] ** 2)
        return jax.jit(jax.value_and_grad(out), compiler_options=QUICKLY).trace(params)

    expected, always = None, None
    for remat in REMAT:
        traced = program(remat)
        text = str(traced.jaxpr)
        assert ("MemorySpace.Host" in text) == (remat == "offload")
        again = text.count("remat")
        always = again if always is None else always  # activation functions are in any case
        assert (again > always) == (remat != "none")
        result = traced.lower().compile()(params)
        expected = result if expected is None else expected
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
