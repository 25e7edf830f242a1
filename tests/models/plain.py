"""Inputs of networks that carry no latents, and their layers in numpy, one head at a time."""

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
