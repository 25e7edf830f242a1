"""The conditions of the network beside the noisy video, as tokens (paper 3.4)."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from snapvideo_jax.models.layers import ScalarEmbedding, constrain, dense

# The factor that brings each scalar into the range that the sinusoid resolves.
SCALE = {
    "c_noise": 1000.0,
    "frame_interval": 1000.0,
    "source_height": 1.0,
    "source_width": 1.0,
    "augmentation": 1000.0,
}


@flax.struct.dataclass
class Conditions:
    """Everything but the noise level; a tree of arrays with the batch in front.

    frame_interval: seconds between frames, 0 for an image ("infinite frame rate", paper 3.3).
    source_size: (height, width) in pixels before resizing; 0 where unknown.
    text: states of the text encoder; text_mask: True at real tokens, all False without text.
    low_res, augmentation: of an upsampler alone: the stage before, noised and enlarged to x's size,
        and the level of that noise in [0, 1] (conditioning augmentation, paper 3.5).
    The same tree also holds shapes or shardings in the places of its arrays, hence Any.
    """

    frame_interval: Any  # float [B]
    source_size: Any  # int [B, 2]
    text: Any  # float [B, K, E]
    text_mask: Any  # bool [B, K]
    low_res: Any = None  # float [B, T, H, W, C]
    augmentation: Any = None  # float [B]

    def beside(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        """Returns x and, of an upsampler, the low resolution as further channels."""
        return x if self.low_res is None else jnp.concatenate([x, self.low_res], axis=-1)

    def drop_text(self, keep: Bool[Array, " B"] | bool) -> "Conditions":
        """Returns the conditions without text where `keep` is False: zero states, all hidden."""
        keep = jnp.broadcast_to(jnp.asarray(keep), self.frame_interval.shape)
        return dataclasses.replace(
            self,
            text=jnp.where(keep[:, None, None], self.text, 0),
            text_mask=self.text_mask & keep[:, None],
        )


class ConditioningTokens(nn.Module):
    """(noise level, conditions) -> tokens of `channels` and the mask of those that may be seen."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, c_noise: Float[Array, " B"], conditions: Conditions
    ) -> tuple[Float[Array, "B K D"], Bool[Array, "B K"]]:
        """Returns K tokens: 4 scalars (5 for an upsampler), always visible, then the text's."""
        scalars = {
            "c_noise": c_noise,
            "frame_interval": conditions.frame_interval,
            "source_height": conditions.source_size[:, 0],
            "source_width": conditions.source_size[:, 1],
        }
        if conditions.augmentation is not None:
            scalars["augmentation"] = conditions.augmentation
        embeddings = [
            ScalarEmbedding(self.channels, self.dtype, name=name)(SCALE[name] * value)
            for name, value in scalars.items()
        ]
        scalar_tokens = jnp.stack(embeddings, axis=1)
        text_tokens = dense(self.channels, self.dtype, "text")(conditions.text)
        visible = jnp.ones(scalar_tokens.shape[:2], bool)
        tokens = jnp.concatenate([scalar_tokens, text_tokens], axis=1)
        mask = jnp.concatenate([visible, conditions.text_mask], axis=1)
        return constrain(tokens, ("batch", None, None)), constrain(mask, ("batch", None))
