"""Attention, feed-forward and the scalar embedding against plain numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from snapvideo_jax.models import layers

ATTEND = layers.dot_product_attention


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax_attention(q, k, v, mask=None):
    """[n, A, d], [k, A, d], [k, A, d] of one example -> [n, A, d], head by head."""
    out = np.empty(q.shape)
    for head in range(q.shape[1]):
        logits = q[:, head].astype(float) @ k[:, head].T / np.sqrt(q.shape[-1])
        if mask is not None:
            logits[:, ~mask] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, head]
    return out


def normalized(x, p):
    x = x.astype(float)
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def projected(x, p):
    return x @ p["kernel"] + p["bias"]


@pytest.fixture(scope="module", params=["self", "cross"])
def block(request, random_params):
    """AttentionBlock of 2 heads x 4 on width 6, its parameters, and (x, context, mask)."""
    x, context, mask = normal(0, 2, 3, 6), None, None
    if request.param == "cross":
        context = normal(1, 2, 5, 10)
        mask = np.array([[1, 1, 0, 1, 0], [0, 1, 0, 0, 0]], bool)
    module = layers.AttentionBlock(heads=2, head_channels=4, attend=ATTEND)
    inputs = jax.tree.map(jnp.asarray, (x, context, mask))
    params = random_params(module, *inputs)
    return jax.jit(functools.partial(module.apply, {"params": params})), params, inputs


def block_in_numpy(p, x, context, mask):
    a, f = p["attention"], p["feed_forward"]
    heads = lambda t: t.reshape(*t.shape[:-1], 2, 4)
    queries = normalized(x, a["norm"])
    keys = queries if context is None else normalized(context, a["context_norm"])
    q, k, v = (heads(projected(t, a[n])) for n, t in (("q", queries), ("k", keys), ("v", keys)))
    masks = [None] * len(x) if mask is None else mask
    out = np.stack([softmax_attention(*one) for one in zip(q, k, v, masks, strict=True)])
    x = x + projected(out.reshape(*x.shape[:-1], 8), a["o"])
    hidden = projected(normalized(x, f["norm"]), f["up"])
    return x + projected(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, f["down"])


def test_a_block_is_attention_and_feed_forward_as_written_in_numpy(block):
    run, params, inputs = block
    expected = block_in_numpy(*jax.tree.map(np.asarray, (params, *inputs)))
    np.testing.assert_allclose(run(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_the_feed_forward_is_four_times_as_wide_and_a_context_has_its_own_norm(block):
    _, params, (_, context, _) = block
    assert params["feed_forward"]["up"]["kernel"].shape == (6, 24)
    assert ("context_norm" in params["attention"]) == (context is not None)


@pytest.mark.parametrize("block", ["cross"], indirect=True)
def test_masked_context_changes_nothing_bit_for_bit(block):
    run, _, (x, context, mask) = block
    before = np.asarray(run(x, context, mask))
    hidden = jnp.where(mask[..., None], context, 1e3 * normal(2, *context.shape))
    np.testing.assert_array_equal(run(x, hidden, mask), before)
    visible = jnp.where(mask[..., None], normal(3, *context.shape), context)
    assert (np.asarray(run(x, visible, mask)) != before).any(axis=(1, 2)).all()


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_attention_takes_any_number_of_batch_axes(batch):
    q, k, v = normal(0, *batch, 4, 2, 8), normal(1, *batch, 5, 2, 8), normal(2, *batch, 5, 2, 8)
    mask = normal(3, *batch, 5) > 0
    mask[..., 0] = True
    got = np.asarray(layers.dot_product_attention(*map(jnp.asarray, (q, k, v, mask))))
    for i in np.ndindex(*batch):
        expected = softmax_attention(q[i], k[i], v[i], mask[i])
        np.testing.assert_allclose(got[i], expected, rtol=1e-5, atol=1e-5)


def test_dropout_takes_hidden_units_and_nothing_else(random_params):
    module, x = layers.FeedForward(dropout=1.0), jnp.asarray(normal(0, 1, 2, 8))
    params = random_params(module, x)
    out = module.apply({"params": params}, x, True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(out, np.add(x, params["down"]["bias"]), rtol=1e-6)


def test_dropout_is_drawn_in_training_alone(random_params):
    x = jnp.asarray(normal(0, 1, 2, 8))
    module = layers.FeedForward(dropout=0.5)
    params = random_params(module, x)

    @functools.partial(jax.jit, static_argnums=1)
    def jitted(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply({"params": params}, x, train, rngs=rngs)

    run = lambda seed, train: np.asarray(jitted(seed, train))
    np.testing.assert_array_equal(run(1, False), run(2, False))
    np.testing.assert_array_equal(run(1, True), run(1, True))
    assert (run(1, True) != run(2, True)).any() and (run(1, True) != run(1, False)).any()


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """1001 has more digits than bfloat16."""
    layer, x = layers.dense(2, jnp.bfloat16, "up"), jnp.ones((1001, 3))
    params = layer.init(jax.random.key(0), x)
    out = layer.apply(params, x)
    slopes = jax.grad(lambda params: layer.apply(params, x).astype(jnp.float32).sum())(params)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(slopes["params"]["bias"], [1001, 1001])


def test_a_bias_of_keys_changes_nothing_and_is_not_trained(block):
    """It adds one number to all scores of a query; all other parameters have a gradient."""
    _, params, inputs = block
    module = layers.AttentionBlock(heads=2, head_channels=4, attend=ATTEND)
    out = jax.jit(lambda params: module.apply({"params": params}, *inputs))
    bias = params["attention"]["k"]["bias"]
    moved = params["attention"] | {"k": params["attention"]["k"] | {"bias": bias + 1}}
    np.testing.assert_allclose(out(params | {"attention": moved}), out(params), atol=1e-5)
    gradient = jax.grad(lambda params: jnp.sum(jnp.sin(out(params))))(params)
    assert not gradient["attention"]["k"]["bias"].any()
    gradient["attention"]["k"].pop("bias")
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_hidden_units_are_materialized_and_their_gradient_is_left_alone(random_params):
    x = jnp.asarray(normal(0, 1, 4, 6))
    module = layers.FeedForward()
    params = random_params(module, x)
    run = lambda x: module.apply({"params": params}, x).sum()
    barriers = lambda f: str(jax.make_jaxpr(f)(x)).count("= optimization_barrier ")
    assert barriers(run) == barriers(jax.grad(run)) == 1


def test_bfloat16_keeps_parameters_and_the_residual_stream_in_float32():
    x = jnp.asarray(normal(0, 1, 3, 8))
    module = layers.AttentionBlock(heads=2, head_channels=4, attend=ATTEND, dtype=jnp.bfloat16)
    out, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x))
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_layer_norm_takes_its_statistics_in_float32():
    """1000 +- 1 has no variance left once its values are rounded to bfloat16."""
    x = np.float32([[999, 1001, 999, 1001]])
    module = layers.layer_norm(jnp.bfloat16, "norm")
    out = module.apply(module.init(jax.random.key(0), x), x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), [[-1, 1, -1, 1]], rtol=1e-2)


@pytest.mark.parametrize("value", [0.0, 0.25, -300.0, 512.0])
def test_the_sinusoid_is_that_of_the_formula_standardized(value):
    width = 16
    angles = value * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    features = np.concatenate([np.sin(angles), np.cos(angles)])
    expected = (features - features.mean()) / features.std()
    got = np.asarray(layers.sinusoid(jnp.float32([value]), width))[0]
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert got.mean() == pytest.approx(0, abs=1e-6)
    assert got.std() == pytest.approx(1, abs=1e-5)


def test_a_scalar_becomes_a_token_by_two_layers(random_params):
    module = layers.ScalarEmbedding(8)
    x = jnp.float32([0.3, -2.0])
    params = random_params(module, x)
    plain = jax.tree.map(np.asarray, params)
    up = projected(np.asarray(layers.sinusoid(x, 8), float), plain["up"])
    expected = projected(up / (1 + np.exp(-up)), plain["down"])
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)
