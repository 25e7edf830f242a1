"""The U-Net against the same network written in numpy, its start at zero, and what sees what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import trees
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models import unet_layers
from snapvideo_jax.models.conditioning import ConditioningTokens
from snapvideo_jax.models.layers import dot_product_attention, sinusoid
from snapvideo_jax.models.unet import UNet
from snapvideo_jax.models.unet_layers import (
    ResidualBlock,
    SpatialAttention,
    TemporalAttention,
    TextAttention,
)
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
    video=(3, 4, 8),
    channels=32,
    multipliers=(1, 2),
    residual_blocks=1,
    attention_levels=(2,),
    head_channels=16,
    conditioning_channels=8,
    attend=dot_product_attention,
    dropout=0.5,
)
ONE_LEVEL = TOY | dict(multipliers=(1,), attention_levels=())  # attention in the middle alone
PAPER = dict(
    video=(16, 40, 64),
    residual_blocks=2,
    attention_levels=(2, 4, 8),
    head_channels=64,
    conditioning_channels=768,
    attend=dot_product_attention,
)
PAPER_85M = dict(channels=128, multipliers=(1, 2, 2, 3)) | PAPER
PAPER_284M = dict(channels=192, multipliers=(1, 2, 3, 4)) | PAPER
QUICKLY = {"xla_backend_optimization_level": 0}  # a third of the time to compile


@pytest.fixture(scope="module")
def toy(random_params):
    """The toy: (compiled F from parameters and inputs, random parameters, inputs)."""
    model = UNet(**TOY)
    params = random_params(model, *inputs(model))
    return jax.jit(lambda p, *args: model.apply({"params": p}, *args)[0]), params, inputs(model)


# The same network in numpy, one frame, one place and one head at a time.


def group_norm(p, x):
    groups = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
    centered = groups - groups.mean((1, 3), keepdims=True)
    normed = centered / np.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-5)
    return normed.reshape(x.shape) * p["scale"] + p["bias"]


def conv(p, x):
    size, (_, H, W, _) = p["kernel"].shape[0], x.shape
    edge = (size // 2, size // 2)
    x = np.pad(x, ((0, 0), edge, edge, (0, 0)))
    taps = [(i, j) for i in range(size) for j in range(size)]
    return sum(x[:, i : i + H, j : j + W] @ p["kernel"][i, j] for i, j in taps) + p["bias"]


def residual(p, x, embedding, resample=lambda x: x):
    h = conv(p["input_conv"], resample(silu(group_norm(p["input_norm"], x))))
    scale, shift = np.split(linear(p["scale_shift"], silu(embedding)), 2, axis=-1)
    frames = len(x) // len(embedding)
    per_frame = lambda t: np.repeat(t, frames, axis=0)[:, None, None]
    h = group_norm(p["output_norm"], h) * (1 + per_frame(scale)) + per_frame(shift)
    skip = conv(p["skip"], x) if "skip" in p else resample(x)
    return skip + conv(p["output_conv"], silu(h))


def attend(p, x, tokens, mask):
    T, H, W, C = len(x) // len(tokens), *x.shape[1:]
    h = group_norm(p["space"]["norm"], x).reshape(-1, H * W, C)
    x = x + np.stack([attention(p["space"]["attention"], f, f) for f in h]).reshape(x.shape)
    h = group_norm(p["text"]["norm"], x).reshape(-1, H * W, C)
    seen = [tokens[i // T][mask[i // T]] for i in range(len(h))]
    out = [attention(p["text"]["attention"], f, s) for f, s in zip(h, seen, strict=True)]
    x = x + np.stack(out).reshape(x.shape)
    h = group_norm(p["time"]["norm"], x).reshape(-1, T, H * W, C)
    h = h + np.asarray(sinusoid(jnp.arange(T), C))[:, None]
    out = [
        [attention(p["time"]["attention"], h[b, :, i], h[b, :, i]) for i in range(H * W)]
        for b in range(len(h))
    ]
    return x + np.moveaxis(np.array(out), 1, 2).reshape(x.shape)


def halve(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def double(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def by_hand(p, x, c_noise, conditions, _):
    """The two-level toy, every skip by name."""
    params, *given = jax.tree.map(jnp.asarray, (p["tokens"], c_noise, conditions))
    tokens = ConditioningTokens(8).apply({"params": params}, *given)
    tokens = [np.asarray(t) for t in tokens]
    features = np.asarray(sinusoid(jnp.asarray(1000 * c_noise), 32))
    embedding = linear(p["sigma"]["down"], silu(linear(p["sigma"]["up"], features)))
    plain = lambda name, h, *how: residual(p[name]["residual"], h, embedding, *how)
    attending = lambda name, h: attend(p[name], plain(name, h), *tokens)
    join = lambda a, b: np.concatenate([a, b], axis=-1)
    stem = conv(p["stem"], x.reshape(-1, *x.shape[2:]))
    large = plain("encoder0_0", stem)
    small = plain("encoder0_downsample", large, halve)
    least = attending("encoder1_0", small)
    h = plain("middle1", attending("middle0", least))
    h = attending("decoder1_0", join(h, least))
    h = attending("decoder1_1", join(h, small))
    h = plain("decoder1_upsample", h, double)
    h = plain("decoder0_0", join(h, large))
    h = plain("decoder0_1", join(h, stem))
    return conv(p["head"], silu(group_norm(p["head_norm"], h))).reshape(x.shape)


def test_it_is_adm_with_attention_over_space_then_text_then_time(toy):
    run, params, args = toy
    F, expected = run(params, *args), by_hand(*jax.tree.map(np.asarray, (params, *args)))
    assert F.shape == args[0].shape
    np.testing.assert_allclose(F, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_F_is_exactly_0_at_initialization_and_previous_passes_through():
    model = UNet(**ONE_LEVEL)
    start = jax.jit(
        lambda key: model.init_with_output(key, *inputs(model)), compiler_options=QUICKLY
    )
    (F, previous), _ = start(jax.random.key(0))
    np.testing.assert_array_equal(F, np.zeros_like(inputs(model)[0]))
    assert previous == () and model.latent_shape is None


@pytest.mark.parametrize(
    ("block", "rest"),
    [
        (ResidualBlock(32), (jnp.asarray(normal(2, 8)),)),
        (SpatialAttention(head_channels=16, attend=dot_product_attention), ()),
        (
            TextAttention(head_channels=16, attend=dot_product_attention),
            (jnp.asarray(normal(2, 3, 8)), jnp.ones((2, 3), bool)),
        ),
        (TemporalAttention(num_frames=3, head_channels=16, attend=dot_product_attention), ()),
    ],
    ids=["residual", "space", "text", "time"],
)
def test_every_block_is_the_identity_at_initialization(block, rest):
    x = jnp.asarray(normal(6, 2, 2, 32))
    out, variables = block.init_with_output(jax.random.key(0), x, *rest)
    np.testing.assert_array_equal(out, x)
    kernels = [leaf for leaf in jax.tree.leaves(variables) if leaf.ndim > 1]
    assert sum(not np.any(leaf) for leaf in kernels) == 1  # the last projection alone is 0


def without_time(params):
    """The same parameters with the temporal projections at 0, as at initialization."""
    silence = lambda path, leaf: 0 * leaf if {"time", "o"} <= set(trees.names(path)) else leaf
    return jax.tree_util.tree_map_with_path(silence, params)


def test_the_order_of_frames_matters_through_temporal_attention_alone(toy):
    run, params, (x, *rest) = toy
    turned = lambda p: np.asarray(run(p, x[:, ::-1], *rest))[:, ::-1]
    silent = np.asarray(run(without_time(params), x, *rest))
    np.testing.assert_allclose(turned(without_time(params)), silent, atol=1e-4 * silent.std())
    F = np.asarray(run(params, x, *rest))
    assert np.abs(turned(params) - F).max() > 0.01 * F.std()


def test_frames_see_each_other_through_temporal_attention_alone(toy):
    run, params, (x, *rest) = toy
    other = x.at[:, 0].add(normal(4, 8, 3)[None])
    changed = lambda p: np.asarray(run(p, x, *rest)) != run(p, other, *rest)
    assert changed(params)[:, 1:].any(axis=(2, 3, 4)).all()
    assert not changed(without_time(params))[:, 1:].any()


def test_hidden_text_changes_no_bit_of_F(toy):
    run, params, args = toy
    assert_hidden_text_changes_no_bit(run, params, *args)


def test_dropout_takes_what_the_second_convolution_reads_and_only_in_training(random_params):
    block = ResidualBlock(32, dropout=1.0)
    x, embedding = jnp.asarray(normal(2, 2, 2, 32)), jnp.asarray(normal(1, 8))
    params = random_params(block, x, embedding)
    run = lambda train: block.apply(
        {"params": params}, x, embedding, train, rngs={"dropout": jax.random.key(0)}
    )
    np.testing.assert_allclose(run(True), np.add(x, params["output_conv"]["bias"]), rtol=1e-6)
    assert np.abs(run(False) - run(True)).max() > 0.1


@pytest.mark.parametrize("remat", ["none", "block"])
def test_the_network_draws_dropout_only_in_training(remat):
    model = UNet(**ONE_LEVEL, remat=remat)
    assert draws_random_bits(model, train=True) and not draws_random_bits(model, train=False)


def test_remat_changes_no_value_and_all_gradients_are_finite(random_params):
    args = inputs(UNet(**ONE_LEVEL))
    params = random_params(UNet(**ONE_LEVEL), *args)

    def loss(remat):
        model = UNet(**ONE_LEVEL, remat=remat)
        return lambda p: jnp.mean(model.apply({"params": p}, *args)[0] ** 2)

    gradient = jax.jit(jax.value_and_grad(loss("block"))).trace(params)
    assert "remat" in str(gradient.jaxpr)
    value, grads = gradient.lower().compile()(params)
    np.testing.assert_allclose(value, jax.jit(loss("none"))(params), rtol=1e-5)
    assert_every_kernel_has_a_gradient(grads)


def test_an_upsampler_reads_its_low_resolution_as_further_channels(random_params):
    model = UNet(**ONE_LEVEL)
    x, c_noise, conditions, none = inputs(model)
    low_res, augmentation = jnp.asarray(normal(*x.shape, seed=4)), jnp.asarray(normal(2) ** 2)
    conditions = conditions.replace(low_res=low_res, augmentation=augmentation)
    params = random_params(model, x, c_noise, conditions, none)
    assert params["stem"]["kernel"].shape == (3, 3, 6, 32)
    assert params["head"]["kernel"].shape == (3, 3, 32, 3)


def test_bfloat16_leaves_parameters_in_float32():
    model = UNet(**TOY | {"dtype": jnp.bfloat16})
    start = lambda: model.init_with_output(jax.random.key(0), *inputs(model))
    (F, _), variables = jax.eval_shape(start)
    assert F.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("sizes", "count"), [(PAPER_85M, 84_794_883), (PAPER_284M, 284_331_267)], ids=["85M", "284M"]
)
def test_parameter_counts_are_exact_and_kernels_alone_are_decayed(sizes, count):
    model = UNet(**sizes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs(model, width=1024))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    decayed = jax.tree.leaves(optim.adapted_mask(shapes))
    assert decayed == [leaf.ndim > 1 for leaf in jax.tree.leaves(shapes)]
    paths = [trees.names(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert not any(set(path) & set(optim.STACKED) for path in paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(video=(3, 9, 8)),
            "model.unet.multipliers=(1, 2) halve the frames 1 times, which the padded video "
            "(3, 9, 8) does not allow; pad it to (3, 10, 8)",
        ),
        (
            PAPER_85M | dict(video=(16, 36, 64)),
            "model.unet.multipliers=(1, 2, 2, 3) halve the frames 3 times, which the padded video "
            "(16, 36, 64) does not allow; pad it to (16, 40, 64)",
        ),
        (dict(channels=100), "model.unet.channels=100 must be a multiple of 32: try 96"),
        (
            dict(head_channels=48),
            "model.unet.head_channels=48 must divide 64, which divides the channels of all "
            "levels with attention: try 16",
        ),
        (
            dict(attention_levels=(2, 4)),
            "model.unet.attention_levels=(2, 4) must be among the levels' downsampling factors "
            "(1, 2)",
        ),
        (
            dict(multipliers=()),
            "model.unet.multipliers=() must be positive, one for each level",
        ),
    ],
    ids=["height", "36 rows", "channels", "heads", "attention", "no level"],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        UNet(**TOY | change)
    assert str(error.value) == message


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """1001 pixels: more digits than bfloat16 has."""
    layer, x = unet_layers.conv(2, 3, jnp.bfloat16, "input_conv"), jnp.ones((1, 7, 143, 3))
    params = layer.init(jax.random.key(0), x)
    out = layer.apply(params, x)
    slopes = jax.grad(lambda params: layer.apply(params, x).astype(jnp.float32).sum())(params)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(slopes["params"]["bias"], [1001, 1001])
