"""What a policy saves: bits without another rounding, and the statistics of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import fields
from snapvideo_jax.models.layers import AttentionBlock, dot_product_attention
from snapvideo_jax.models.remat import REMAT, save_bits


def test_what_is_saved_for_the_backward_pass_is_not_rounded_again(random_params):
    """JAX rounds the numbers that a policy saves to their dtype, in a pass over memory."""
    x = jnp.ones((1, 4, 8))
    module = AttentionBlock(
        heads=2, head_channels=4, attend=dot_product_attention, dtype=jnp.bfloat16
    )
    params = random_params(module, x)

    def gradient(x):
        run = jax.checkpoint(
            lambda x: module.apply({"params": params}, x).sum(), policy=REMAT["dots"]
        )
        return jax.grad(run)(x)

    traced = str(jax.make_jaxpr(gradient)(x))
    assert "reduce_precision" not in traced and traced.count("name=attention") == 1
    assert traced.count("name=product") == 6  # q, k, v, o, up, down


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
@pytest.mark.parametrize(("channels", "again"), [(64, 0), (32, 4)])
def test_statistics_of_norms_are_saved_where_they_are_sums_of_many(
    random_params, remat, channels, again
):
    """A block has two norms of two sums each, whose own gradients are four sums of that kind."""
    x = jnp.ones((1, 4, channels))
    module = AttentionBlock(heads=2, head_channels=4, attend=dot_product_attention)
    params = random_params(module, x)
    run = lambda x: module.apply({"params": params}, x).sum()
    gradient = jax.grad(jax.checkpoint(run, policy=REMAT[remat]))
    sums = str(jax.make_jaxpr(gradient)(x)).count("reduce_sum[axes=(2,)")
    assert sums == 4 + again + 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_saved_and_its_gradient_are_those_of_x(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(16), dtype)
    value, pull = jax.vjp(lambda x: save_bits(x, "product"), x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(pull(3 * x)[0], 3 * x)


def test_configs_may_name_every_policy():
    assert fields.FIELDS["model.remat"].words == tuple(REMAT)
