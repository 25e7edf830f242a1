"""The T5 encoder, versions 1.0 (ReLU) and 1.1 (gated GELU) (Raffel et al. 2020; Shazeer 2020).

As published: RMS norms without bias, no 1 / sqrt(d) in attention, no biases anywhere, one table
of relative position biases shared by all layers, bidirectional buckets.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from snapvideo_jax.models.layers import NORM_EPSILON, constrain, dense, gather_kernel


def relative_position_bucket(
    distance: Int[Array, "n k"], num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "n k"]:
    """Sorts key minus query positions into buckets: half a sign, exact near, log-spaced far.

    Far distances are compared with whole numbers, so no device's logarithm decides a bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    growth = (max_distance / exact) ** (np.arange(1, half - exact) / (half - exact))
    first = np.ceil(exact * growth - 1e-9).astype(np.int32)  # shortest distance of each far bucket
    magnitude = jnp.abs(distance)
    far = exact + jnp.sum(magnitude[..., None] >= first[None, None], axis=-1)
    return jnp.where(distance > 0, half, 0) + jnp.where(magnitude < exact, magnitude, far)


class T5Attention(nn.Module):
    """x + MHA(RMSNorm(x)) with a position bias on the logits; softmax in float32."""

    heads: int
    head_channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B K E"],
        bias: Float[Array, "A K K"],
        mask: Bool[Array, "B K"],
    ) -> Float[Array, "B K E"]:
        """Attends to the tokens where `mask` is True; padded positions come out finite, unused."""
        width = self.heads * self.head_channels
        h = nn.RMSNorm(NORM_EPSILON, dtype=self.dtype, name="norm")(x)
        split = lambda t: rearrange(t, "B K (A d) -> B K A d", A=self.heads)
        q, k, v = (split(dense(width, self.dtype, name, use_bias=False)(h)) for name in "qkv")
        logits = jnp.einsum("BqAd,BkAd->BAqk", q, k, preferred_element_type=jnp.float32)
        logits = jnp.where(mask[:, None, None, :], logits + bias[None], -1e9)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        out = rearrange(jnp.einsum("BAqk,BkAd->BqAd", weights, v), "B K A d -> B K (A d)")
        return x + dense(x.shape[-1], self.dtype, "o", use_bias=False)(out)


class T5FeedForward(nn.Module):
    """x + Dense(act(Dense(RMSNorm(x)))); gated: gelu(a) * b, else relu(a)."""

    hidden: int
    gated: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B K E"]) -> Float[Array, "B K E"]:
        """Returns x and what the layer adds to it, in the shape of x."""
        project = lambda features, name: dense(features, self.dtype, name, use_bias=False)
        h = nn.RMSNorm(NORM_EPSILON, dtype=self.dtype, name="norm")(x)
        if self.gated:
            h = nn.gelu(project(self.hidden, "gate")(h)) * project(self.hidden, "up")(h)
        else:
            h = nn.relu(project(self.hidden, "up")(h))
        return x + project(x.shape[-1], "down")(h)


class T5Encoder(nn.Module):
    """Token ids -> states. `gated` is True for v1.1 (and XXL), False for v1.0 (T5-11B)."""

    vocabulary_size: int
    channels: int
    heads: int
    head_channels: int
    hidden: int
    layers: int
    gated: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "B K"], mask: Bool[Array, "B K"]) -> Float[Array, "B K E"]:
        """Returns states [B, K, channels]; those of padded positions mean nothing."""
        embed = nn.Embed(
            num_embeddings=self.vocabulary_size,
            features=self.channels,
            name="token_table",
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
        )
        x = jnp.take(gather_kernel(embed.embedding, (None, None)), ids, axis=0).astype(self.dtype)
        bias = self.position_bias(ids.shape[1])
        for i in range(self.layers):
            x = T5Attention(
                heads=self.heads,
                head_channels=self.head_channels,
                dtype=self.dtype,
                name=f"attention{i}",
            )(x, bias, mask)
            x = T5FeedForward(
                hidden=self.hidden, gated=self.gated, dtype=self.dtype, name=f"feed_forward{i}"
            )(x)
        states = nn.RMSNorm(NORM_EPSILON, dtype=self.dtype, name="final_norm")(x)
        return constrain(states, ("batch", None, None))

    def position_bias(self, length: int) -> Float[Array, "A K K"]:
        """Looks up the learned number of each head and bucket, in float32."""
        table = self.param("position_bias", nn.initializers.normal(0.1), (32, self.heads))
        positions = jnp.arange(length)
        buckets = relative_position_bucket(positions[None, :] - positions[:, None])
        return rearrange(table[buckets], "q k A -> A q k")
