"""DiT against the same network written in numpy; its start at zero, what sees what, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from snapvideo_jax import trees
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.conditioning import ConditioningTokens
from snapvideo_jax.models.dit import DiT, DiTBlock, positions
from snapvideo_jax.models.layers import dot_product_attention, sinusoid
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.planner import cost
from snapvideo_jax.training import optim
from tests.models.plain import (
    assert_every_kernel_has_a_gradient,
    assert_hidden_text_changes_no_bit,
    attention,
    draws_random_bits,
    inputs,
    linear,
    normal,
    silu,
)

TOY = dict(
    video=(3, 4, 8),  # 3 frames of 2 x 4 patches
    patch=2,
    channels=32,
    blocks=2,
    head_channels=16,
    factorised=False,
    conditioning_channels=8,
    attend=dot_product_attention,
    dropout=0.5,
)
FRAME = Grouping(2, (1, 2, 4))
FORMS = pytest.mark.parametrize("factorised", [False, True], ids=["joint", "factorised"])
SIZES_500M = {False: dict(channels=1024, blocks=30), True: dict(channels=1024, blocks=24)}
QUICKLY = {"xla_backend_optimization_level": 0}  # a third of the time to compile


@pytest.fixture(scope="module", params=[False, True], ids=["joint", "factorised"])
def toy(random_params, request):
    """The toy: (model, compiled F from parameters and inputs, random parameters, inputs)."""
    model = DiT(**TOY | {"factorised": request.param})
    params = random_params(model, *inputs(model))
    run = jax.jit(lambda p, *args: model.apply({"params": p}, *args)[0])
    return model, run, params, inputs(model)


# The same network in numpy, one example, one frame or place and one head at a time.


def layer_norm(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)


def affine_norm(p, x):
    return layer_norm(x) * p["scale"] + p["bias"]


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=False))


def block(p, x, modulation, seen, frames):
    """One block on a row of tokens x [N, C]; modulation [L, 3, C]; seen: visible tokens [K, E]."""
    *attentions, feed_forward = modulation + p["modulation_table"]
    names = ["joint"] if frames is None else ["space", "time"]
    for name, (shift, scale, gate) in zip(names, attentions, strict=True):
        h = layer_norm(x) * (1 + scale) + shift
        if name == "space":
            parts = np.split(h, frames)
            out = np.concatenate([attention(p[name], part, part) for part in parts])
        elif name == "time":
            places = h.reshape(frames, -1, h.shape[-1]).swapaxes(0, 1)
            out = np.stack([attention(p[name], place, place) for place in places], axis=1)
        else:
            out = attention(p[name], h, h)
        x = x + gate * out.reshape(x.shape)
    queries, keys = affine_norm(p["text"]["norm"], x), affine_norm(p["text"]["context_norm"], seen)
    x = x + attention(p["text"], queries, keys)
    shift, scale, gate = feed_forward
    h = layer_norm(x) * (1 + scale) + shift
    return x + gate * linear(p["feed_forward"]["down"], gelu(linear(p["feed_forward"]["up"], h)))


def by_hand(model, p, x, c_noise, conditions):
    params, *conditioning = jax.tree.map(jnp.asarray, (p["tokens"], c_noise, conditions))
    tokens = ConditioningTokens(8).apply({"params": params}, *conditioning)
    tokens, mask = (np.asarray(t) for t in tokens)
    vectors = linear(p["modulation"], silu(tokens[:, :4].sum(1))).reshape(len(x), -1, 32)
    patches = rearrange(x, "B T (H p) (W q) C -> B (T H W) (p q C)", p=2, q=2)
    row = linear(p["stem"], patches) + np.asarray(positions(3, FRAME, 32))
    frames, outputs = 3 if model.factorised else None, []
    for i in range(len(x)):
        out = row[i]
        for b in range(2):
            weights = jax.tree.map(lambda leaf, b=b: leaf[b], p["blocks"])
            modulation = vectors[i, :-2].reshape(-1, 3, 32)
            out = block(weights, out, modulation, tokens[i][mask[i]], frames)
        shift, scale = vectors[i, -2:]
        outputs.append(linear(p["head"], layer_norm(out) * (1 + scale) + shift))
    shape = dict(T=3, H=2, W=4, p=2, q=2)
    return rearrange(np.array(outputs), "B (T H W) (p q C) -> B T (H p) (W q) C", **shape)


def test_it_is_dit_with_text_and_one_modulation_for_all_blocks(toy):
    model, run, params, args = toy
    plain = jax.tree.map(np.asarray, (params, *args[:3]))
    expected = by_hand(model, *plain)
    F = run(params, *args)
    assert F.shape == args[0].shape
    np.testing.assert_allclose(F, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@FORMS
def test_F_is_exactly_0_at_initialization_and_previous_passes_through(factorised):
    model = DiT(**TOY | {"factorised": factorised, "blocks": 1})
    start = jax.jit(
        lambda key: model.init_with_output(key, *inputs(model)), compiler_options=QUICKLY
    )
    (F, previous), _ = start(jax.random.key(0))
    np.testing.assert_array_equal(F, np.zeros_like(inputs(model)[0]))
    assert previous == () and model.latent_shape is None


@FORMS
def test_a_block_is_the_identity_at_initialization(factorised):
    """adaLN-Zero: the shared modulation starts at 0, and the table that a block adds to it."""
    block = DiTBlock(
        frames=3 if factorised else None,
        head_channels=16,
        dropout=0.0,
        dtype=jnp.float32,
        attend=dot_product_attention,
    )
    x = jnp.asarray(normal(2, 24, 32))
    shared = jnp.zeros((2, 3 if factorised else 2, 3, 32))
    conditioning = shared, jnp.asarray(normal(2, 3, 8)), jnp.ones((2, 3), bool)
    (out, _), variables = block.init_with_output(jax.random.key(0), x, conditioning, False)
    np.testing.assert_array_equal(out, x)
    zeros = [
        trees.path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if not np.any(leaf) and path[-1].key != "bias"
    ]
    assert zeros == ["modulation_table", "text/o/kernel"]


def test_every_token_has_a_place_of_its_own():
    places = np.asarray(positions(4, Grouping(2, (1, 3, 5)), 32))[0]
    assert places.shape == (60, 32) and len(np.unique(places.round(4), axis=0)) == 60
    t, row, column = 3, 2, 4  # the last: frames first, then rows
    parts = (t, 12), (row, 10), (column, 10)
    last = [np.asarray(sinusoid(jnp.arange(5), width))[at] for at, width in parts]
    np.testing.assert_allclose(places.reshape(4, 3, 5, 32)[t, row, column], np.concatenate(last))


def test_the_order_of_frames_matters(toy):
    _, run, params, (x, *rest) = toy
    F = np.asarray(run(params, x, *rest))
    assert np.abs(np.asarray(run(params, x[:, ::-1], *rest))[:, ::-1] - F).max() > 0.01 * F.std()


def changed(model, run, params, x, rest):
    """Where F [T, rows, columns of patches] changes with the first patch of the first frame."""
    other = x.at[:, 0, :2, :2].add(1)
    differs = np.asarray(run(params, x, *rest)) != run(params, other, *rest)
    return rearrange(differs, "B T (H p) (W q) C -> T H W (B p q C)", p=2, q=2).any(axis=-1)


def test_a_patch_sees_all_others(toy):
    model, run, params, (x, *rest) = toy
    assert changed(model, run, params, x, rest).all()


def silent(params, layer):
    """The same parameters with the output of a layer at 0."""
    mute = lambda path, leaf: 0 * leaf if trees.names(path)[-3:-1] == (layer, "o") else leaf
    return jax.tree_util.tree_map_with_path(mute, params)


@pytest.mark.parametrize("toy", [True], indirect=True, ids=["factorised"])
def test_frames_see_each_other_through_time_and_places_through_space_alone(toy):
    model, run, params, (x, *rest) = toy
    frames = changed(model, run, silent(params, "time"), x, rest)
    assert frames[0].all() and not frames[1:].any()
    places = changed(model, run, silent(params, "space"), x, rest)
    assert places[:, 0, 0].all() and places.sum() == 3


def test_hidden_text_changes_no_bit_of_F(toy):
    _, run, params, args = toy
    assert_hidden_text_changes_no_bit(run, params, *args)


def test_each_scalar_condition_modulates(toy):
    """With attention to the conditions at 0, they come in by the modulation alone."""
    _, run, params, (x, c_noise, conditions, previous) = toy
    params = silent(params, "text")
    before = run(params, x, c_noise, conditions, previous)
    for other in (
        (c_noise + 1, conditions),
        (c_noise, conditions.replace(frame_interval=conditions.frame_interval + 1)),
        (c_noise, conditions.replace(source_size=conditions.source_size + 8)),
    ):
        assert np.abs(run(params, x, *other, previous) - before).max() > 1e-3
    text = conditions.replace(text=conditions.text + jnp.float32([1, 0, 0])[None, :, None])
    np.testing.assert_array_equal(run(params, x, c_noise, text, previous), before)


@pytest.mark.parametrize("remat", ["none", "block"])
def test_the_network_draws_dropout_only_in_training(remat):
    model = DiT(**TOY, remat=remat)
    assert draws_random_bits(model, train=True) and not draws_random_bits(model, train=False)


@FORMS
def test_remat_and_unrolling_change_no_value_and_all_gradients_are_finite(
    random_params, factorised
):
    form = TOY | {"factorised": factorised, "dropout": 0.0}
    args = inputs(DiT(**form))
    params = random_params(DiT(**form), *args)

    def loss(**changes):
        model = DiT(**form | changes)
        return lambda p: jnp.mean(model.apply({"params": p}, *args, train=True)[0] ** 2)

    gradient = jax.jit(jax.value_and_grad(loss(remat="block"))).trace(params)
    assert "remat" in str(gradient.jaxpr)
    value, grads = gradient.lower().compile()(params)
    np.testing.assert_allclose(value, jax.jit(loss(unroll=2))(params), rtol=1e-5)
    assert_every_kernel_has_a_gradient(grads)


def test_an_upsampler_reads_its_low_resolution_as_further_channels(random_params):
    model = DiT(**TOY)
    x, c_noise, conditions, none = inputs(model)
    low_res, augmentation = jnp.asarray(normal(*x.shape, seed=4)), jnp.asarray(normal(2) ** 2)
    conditions = conditions.replace(low_res=low_res, augmentation=augmentation)
    params = random_params(model, x, c_noise, conditions, none)
    assert params["stem"]["kernel"].shape == (2 * 2 * 6, 32)
    assert params["head"]["kernel"].shape == (32, 2 * 2 * 3)
    assert "augmentation" in params["tokens"]


def test_bfloat16_leaves_parameters_in_float32():
    model = DiT(**TOY | {"dtype": jnp.bfloat16})
    start = lambda: model.init_with_output(jax.random.key(0), *inputs(model))
    (F, _), variables = jax.eval_shape(start)
    assert F.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def paper_size(factorised):
    """(model, its inputs) of about 500M parameters, at 16 x 40 x 64 with 128 tokens of text."""
    sizes = SIZES_500M[factorised] | dict(video=(16, 40, 64), patch=4, head_channels=64)
    model = DiT(**TOY | sizes | dict(factorised=factorised, conditioning_channels=768))
    x, c_noise, conditions, none = inputs(model)
    conditions = conditions.replace(
        text=jnp.zeros((2, 128, 1024)), text_mask=jnp.ones((2, 128), bool)
    )
    return model, (x, c_noise, conditions, none)


@FORMS
def test_parameters_are_those_of_the_closed_form(factorised):
    model, args = paper_size(factorised)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    C, E, L, P = 1024, 768, model.blocks, 4 * 4 * 3
    attentions, vectors = (2, 9) if factorised else (1, 6)
    block = (
        attentions * (4 * C * C + 4 * C)  # q, k, v, o
        + (2 * C * C + 2 * E * C + 4 * C) + 2 * C + 2 * E  # the text's, and its two norms
        + (8 * C * C + 5 * C)  # feed-forward
        + vectors * C  # the table
    )  # fmt: skip
    modulation = (E + 1) * (vectors + 2) * C
    scalars, text = 4 * 2 * (E * E + E), 1024 * E + E
    outside = (P * C + C) + (C * P + P) + modulation + scalars + text
    assert cost.parameters(shapes) == L * block + outside
    last = lambda path: trees.names(path)[-1]
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    decayed = jax.tree.leaves(optim.adapted_mask(shapes))
    assert decayed == [last(path) == "kernel" for path, _ in leaves]


@FORMS
def test_flops_are_those_of_the_closed_form_to_half_a_percent(factorised):
    model, args = paper_size(factorised)
    params = jax.eval_shape(model.init, jax.random.key(0), *args)
    call = jax.jit(lambda p, *args: model.apply(p, *args)[0])
    N, S, T, C, E, K = 2560, 160, 16, 1024, 768, 132
    keys = S + T if factorised else N
    products = 2 * N * ((16 if factorised else 12) * C * C + 2 * C * C) + 2 * K * 2 * E * C
    attention = 4 * N * C * (keys + K)
    expected = 2 * model.blocks * (products + attention)  # of two examples
    assert cost.flops(call, params, *args) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(patch=3),
            "model.dit.patch=3 does not divide the 4 x 8 pixels of a padded frame; the nearest "
            "size that fits is 3 x 9",
        ),
        (dict(channels=40), "model.dit.channels=40 must be a multiple of 16: try 32"),
        (
            dict(channels=15, head_channels=5),
            "model.dit.channels=15 must be a multiple of 10: try 20",
        ),
    ],
    ids=["patch", "heads", "odd"],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        DiT(**TOY | change)
    assert str(error.value) == message
