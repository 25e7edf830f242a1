"""Of networks that carry no latents: inputs, layers in numpy, and what holds of each of them."""

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax.models.conditioning import Conditions


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(model, width=6):
    """x, c_noise, conditions, no previous latents, for two examples."""
    mask = jnp.array([[1, 1, 0], [0, 0, 0]], bool)
    text, size = jnp.asarray(normal(2, 3, width, seed=1)), jnp.int32([[36, 64], [0, 0]])
    conditions = Conditions(jnp.asarray(normal(2, seed=2) ** 2), size, text, mask)
    return jnp.asarray(normal(2, *model.video, 3)), jnp.asarray(normal(2, seed=3)), conditions, ()


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def attention(p, x, context):
    """Rows of x [n, C] attend to those of context [k, E], in heads of 16."""
    q, k, v = linear(p["q"], x), linear(p["k"], context), linear(p["v"], context)
    out = []
    for head in np.split(np.arange(x.shape[-1]), x.shape[-1] // 16):
        weights = np.exp(q[:, head] @ k[:, head].T / 4)
        out.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    return linear(p["o"], np.concatenate(out, axis=1))


def draws_random_bits(model, train):
    """Whether a pass through the network draws any."""
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(model.init, rngs, *inputs(model))
    run = lambda v: model.apply(v, *inputs(model), train=train, rngs=rngs)
    return "random_bits" in str(jax.make_jaxpr(run)(variables))


def assert_hidden_text_changes_no_bit(run, params, x, c_noise, conditions, previous):
    """Asserts it of F = run(params, ...), and that visible text changes it."""
    padded = ~conditions.text_mask[..., None]
    other = conditions.replace(text=jnp.where(padded, 1e3, conditions.text))
    before = run(params, x, c_noise, conditions, previous)
    np.testing.assert_array_equal(before, run(params, x, c_noise, other, previous))
    real = conditions.replace(text=conditions.text + jnp.float32([1, 0, 0])[None, :, None])
    changed = np.asarray(before) != run(params, x, c_noise, real, previous)
    np.testing.assert_array_equal(changed.any(axis=(1, 2, 3, 4)), conditions.text_mask.any(axis=1))


def assert_every_kernel_has_a_gradient(gradients):
    """Asserts it, and that all gradients are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf) or path[-1].key != "kernel", f"{path} has no gradient"
