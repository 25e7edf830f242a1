"""Parameters for networks under test, without compiling their initializers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _random_leaf(path, leaf, rng):
    around = 1 if path[-1].key == "scale" else 0
    fan_in = leaf.shape[-2] if path[-1].key == "kernel" else 16
    drawn = around + rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
    return jnp.asarray(drawn.astype(leaf.dtype))


@pytest.fixture(scope="session")
def random_params():
    """(module, *inputs) -> parameters of which none is 0: biases, scales and tables too."""

    def draw(module, *inputs, seed=0):
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        rng = np.random.default_rng(seed)
        return jax.tree_util.tree_map_with_path(lambda p, leaf: _random_leaf(p, leaf, rng), shapes)

    return draw
