"""The T5 encoder, versions 1.0 (ReLU) and 1.1 (gated GELU) (Raffel et al. 2020; Shazeer 2020).

As published: RMS norms without bias, no 1 / sqrt(d) in attention, no biases anywhere, one table
of relative position biases shared by all layers, bidirectional buckets.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from snapvideo_jax.models.layers import NORM_EPSILON, dense, gathered, named


def relative_position_bucket(
    distance: Int[Array, "n k"], num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "n k"]:
    """Key minus query position -> bucket: half for each sign, exact near, log-spaced far.

    Far distances are compared with whole numbers, so no device's logarithm decides a bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    growth = (max_distance / exact) ** (np.arange(1, half - exact) / (half - exact))
    first = np.ceil(exact * growth - 1e-9).astype(np.int32)  # shortest distance of each far bucket
    magnitude = jnp.abs(distance)
    far = exact + jnp.sum(magnitude[..., None] >= first, axis=-1)
    return jnp.where(distance > 0, half, 0) + jnp.where(magnitude < exact, magnitude, far)


class T5Attention(nn.Module):
    """x + MHA(RMSNorm(x)) with a position bias on the logits; softmax in float32."""

    heads: int
    head_channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B K E"],
        bias: Float[Array, "A K K"],
        mask: Bool[Array, "B K"],
    ) -> Float[Array, "B K E"]:
        """`mask` is True at real tokens; padded positions come out as finite rubbish."""
        width = self.heads * self.head_channels
        h = nn.RMSNorm(NORM_EPSILON, dtype=self.dtype, name="norm")(x)
        split = lambda t: rearrange(t, "B K (A d) -> B K A d", A=self.heads)
        q, k, v = (split(dense(width, self.dtype, name, use_bias=False)(h)) for name in "qkv")
        logits = jnp.einsum("BqAd,BkAd->BAqk", q, k, preferred_element_type=jnp.float32)
        logits = jnp.where(mask[:, None, None, :], logits + bias, -1e9)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        out = rearrange(jnp.einsum("BAqk,BkAd->BqAd", weights, v), "B K A d -> B K (A d)")
        return x + dense(x.shape[-1], self.dtype, "o", use_bias=False)(out)


class T5FeedForward(nn.Module):
    """x + Dense(act(Dense(RMSNorm(x)))); gated: gelu(a) * b, else relu(a)."""

    hidden: int
    gated: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B K E"]) -> Float[Array, "B K E"]:
        """Same shape out."""
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
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "B K"], mask: Bool[Array, "B K"]) -> Float[Array, "B K E"]:
        """States [B, K, channels]; those of padded positions mean nothing."""
        embed = nn.Embed(
            self.vocabulary_size,
            self.channels,
            name="token_table",
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
        )
        x = jnp.take(gathered(embed.embedding, (None, None)), ids, axis=0).astype(self.dtype)
        bias = self.position_bias(ids.shape[1])
        for i in range(self.layers):
            x = T5Attention(self.heads, self.head_channels, self.dtype, name=f"attention{i}")(
                x, bias, mask
            )
            x = T5FeedForward(self.hidden, self.gated, self.dtype, name=f"feed_forward{i}")(x)
        states = nn.RMSNorm(NORM_EPSILON, dtype=self.dtype, name="final_norm")(x)
        return named(states, ("batch", None, None))

    def position_bias(self, length: int) -> Float[Array, "A K K"]:
        """One learned number for each head and bucket, in float32."""
        table = self.param("position_bias", nn.initializers.normal(0.1), (32, self.heads))
        positions = jnp.arange(length)
        buckets = relative_position_bucket(positions[None, :] - positions[:, None])
        return rearrange(table[buckets], "q k A -> A q k")
