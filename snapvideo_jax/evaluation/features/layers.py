"""What the published networks share: frozen batch norm, and convolution + norm + ReLU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = str | int | tuple[tuple[int, int], ...]


class FrozenNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) scale + bias, by stored statistics."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Returns x normalized, channel by channel."""
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        initializers = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        scale, bias, mean, var = (
            self.param(name, init, x.shape[-1:]) for name, init in initializers.items()
        )
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        return x * factor.reshape((1,) * (x.ndim - 1) + (-1,)) + shift.reshape(
            (1,) * (x.ndim - 1) + (-1,)
        )


class ConvNorm(nn.Module):
    """ReLU(norm(conv(x))), full float32 on every device.

    conv, norm: the names of the two in the published file.
    """

    features: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: Padding = "VALID"
    epsilon: float = 1e-3
    names: tuple[str, str] = ("conv", "bn")

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*b D"]:
        """Returns the features, channels last."""
        conv, norm = self.names
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=self.stride,
            padding=self.padding,
            use_bias=False,
            precision="highest",
            name=conv,
        )(x)
        return jax.nn.relu(FrozenNorm(self.epsilon, name=norm)(x))


def max_pool(
    x: Float[Array, "B *n C"], window: tuple[int, ...], stride: tuple[int, ...], padding: str
) -> Float[Array, "B *_ C"]:
    """Returns the largest value of each window; padding is never the largest."""
    return nn.max_pool(x, window, strides=stride, padding=padding)


def mean_pool(x: Float[Array, "B H W C"], window: int) -> Float[Array, "B H W C"]:
    """Averages over windows around each place, of the places inside the picture alone."""
    shape = (window, window)
    return nn.avg_pool(x, shape, strides=(1, 1), padding="SAME", count_include_pad=False)


def concatenate(*branches: Float[Array, "*b _"]) -> Float[Array, "*b C"]:
    """Joins the channels of branches."""
    return jnp.concatenate(branches, axis=-1)
