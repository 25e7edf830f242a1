"""What the network is told beside the noisy video, as tokens (paper 3.4)."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from snapvideo_jax.models.layers import ScalarEmbedding, dense, named

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
    text: states of the text encoder; mask: True at real tokens, all False where text is dropped.
    low_res, augmentation: of an upsampler alone: the stage before, noised and enlarged to x's size,
        and the level of that noise in [0, 1] (conditioning augmentation, paper 3.5).
    """

    frame_interval: Float[Array, " B"]
    source_size: Int[Array, "B 2"]
    text: Float[Array, "B K E"]
    text_mask: Bool[Array, "B K"]
    low_res: Float[Array, "B T H W C"] | None = None
    augmentation: Float[Array, " B"] | None = None

    def drop_text(self, keep: Bool[Array, " B"] | bool) -> "Conditions":
        """The same without text where `keep` is False: zero states, nothing visible."""
        keep = jnp.broadcast_to(jnp.asarray(keep), self.frame_interval.shape)
        return dataclasses.replace(
            self,
            text=jnp.where(keep[:, None, None], self.text, 0),
            text_mask=self.text_mask & keep[:, None],
        )


class ConditioningTokens(nn.Module):
    """(noise level, conditions) -> tokens of `channels` and the mask of those that may be seen."""

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, c_noise: Float[Array, " B"], given: Conditions
    ) -> tuple[Float[Array, "B K D"], Bool[Array, "B K"]]:
        """K = 4 scalar tokens (5 for an upsampler), always visible, then the text's."""
        scalars = {
            "c_noise": c_noise,
            "frame_interval": given.frame_interval,
            "source_height": given.source_size[:, 0],
            "source_width": given.source_size[:, 1],
        }
        if given.augmentation is not None:
            scalars["augmentation"] = given.augmentation
        tokens = [
            ScalarEmbedding(self.channels, self.dtype, name=name)(SCALE[name] * value)
            for name, value in scalars.items()
        ]
        scalar_tokens = jnp.stack(tokens, axis=1)
        text_tokens = dense(self.channels, self.dtype, "text")(given.text)
        visible = jnp.ones(scalar_tokens.shape[:2], bool)
        return (
            named(jnp.concatenate([scalar_tokens, text_tokens], axis=1), ("batch", None, None)),
            named(jnp.concatenate([visible, given.text_mask], axis=1), ("batch", None)),
        )
