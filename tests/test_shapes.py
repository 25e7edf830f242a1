"""Annotations of the package's shapes are checked while its tests run."""

import jax.numpy as jnp
import jaxtyping
import pytest

from snapvideo_jax.diffusion import edm
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.models.unet_layers import SpatialAttention


def test_a_batch_that_is_not_that_of_the_other_arguments_is_refused():
    video, sigma = jnp.zeros((3, 2, 4, 4, 3)), jnp.ones(2)
    with pytest.raises(jaxtyping.TypeCheckError, match="B=3"):
        edm.loss_F(F=video, x=video, eps=video, sigma=sigma, sigma_data=1.0, sigma_in=4.0)


def test_what_layers_hand_to_each_other_is_checked_too():
    def attend(q, k, v, mask):
        return dot_product_attention(q, k[..., 1:], v, mask)

    layer, x = SpatialAttention(head_channels=16, attend=attend), jnp.zeros((2, 4, 4, 32))
    with pytest.raises(jaxtyping.TypeCheckError, match="dot_product_attention"):
        layer.init_with_output(jnp.zeros((2,), jnp.uint32), x)


def test_arrays_of_different_rank_are_not_broadcast_in_silence():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros(3)
