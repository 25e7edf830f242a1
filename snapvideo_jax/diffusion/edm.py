"""The diffusion of Snap Video (paper 3.2, Table 1, appendices D and E): EDM with scaled inputs.

Symbols are the paper's: x clean video, eps unit noise, sigma its level, sigma_data the standard
deviation assumed for x, sigma_in the input scaling factor, v velocity, F the network's output, D
the denoised estimate of x (not of x / sigma_in). Functions of `Elements` are elementwise: `sigma`
must already have the trailing axes that it needs (`expand`). Compute in float32.
At sigma_in = 1 all of it is EDM (Karras et al. 2022) up to the sign of F and c_out.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

# Arrays of one function broadcast: a number, one an example, or a whole batch.
Elements = Float[Array, "..."]


def expand(
    per_example: Shaped[Array, ""] | Shaped[Array, " B"], x: Shaped[Array, "B ..."]
) -> Shaped[Array, "..."]:
    """Appends axes of size 1 so that one number, or one an example, broadcasts over `x`."""
    return per_example.reshape(per_example.shape + (1,) * (x.ndim - per_example.ndim))


def add_noise(x: Elements, sigma: Elements, eps: Elements, sigma_in: Elements | float) -> Elements:
    """The forward process: x_sigma = x / sigma_in + sigma * eps (paper eq. 3)."""
    return x / sigma_in + sigma * eps


def velocity(x: Elements, sigma: Elements, eps: Elements, sigma_data: float) -> Elements:
    """The training target before normalization: v = sigma_data^2 eps - sigma x (App. D)."""
    return sigma_data**2 * eps - sigma * x


def c_nrm(sigma: Elements, sigma_data: float) -> Elements:
    """Normalizes the target: c_nrm * v has unit variance (Table 1)."""
    return 1 / (sigma_data * jnp.sqrt(sigma_data**2 + sigma**2))


def c_in(sigma: Elements, sigma_data: float, sigma_in: Elements | float) -> Elements:
    """Normalizes the input: c_in * x_sigma has unit variance (Table 1)."""
    return 1 / jnp.sqrt((sigma_data / sigma_in) ** 2 + sigma**2)


def c_skip(sigma: Elements, sigma_data: float, sigma_in: float) -> Elements:
    """c_skip = sigma_in sigma_data^2 / (sigma_in sigma^2 + sigma_data^2) (App. E, eq. 34)."""
    return sigma_in * sigma_data**2 / (sigma_in * sigma**2 + sigma_data**2)


def c_out(sigma: Elements, sigma_data: float, sigma_in: float) -> Elements:
    """Returns the weight of F in D (App. E, eq. 35); negative, because F estimates +v."""
    numerator = sigma_in * sigma * sigma_data * jnp.sqrt(sigma**2 + sigma_data**2)
    return -numerator / (sigma_data**2 + sigma_in * sigma**2)


def c_noise(log_sigma: Elements) -> Elements:
    """The network's input for the noise level: c_noise = ln(sigma) / 4 (Table 1)."""
    return log_sigma / 4


def denoised(
    x_sigma: Elements, F: Elements, sigma: Elements, sigma_data: float, sigma_in: float
) -> Elements:
    """D = c_skip x_sigma + c_out F, the estimate of x (paper eq. 4)."""
    skip = c_skip(sigma, sigma_data, sigma_in) * x_sigma
    return skip + c_out(sigma, sigma_data, sigma_in) * F


def loss_weight(sigma: Elements, sigma_data: float) -> Elements:
    """lambda = 1 / sigma_data^2 + 1 / sigma^2, the weight of |D - x|^2 (Table 1)."""
    return 1 / sigma_data**2 + 1 / sigma**2


def loss_weight_F(
    sigma: Elements | Float[np.ndarray, "..."], sigma_data: float, sigma_in: Elements | float
) -> Elements | Float[np.ndarray, "..."]:
    """w = lambda c_out^2, the weight of |F - c_nrm v|^2 (App. E); between 1 and sigma_in^2."""
    return ((sigma**2 + sigma_data**2) / (sigma**2 + sigma_data**2 / sigma_in)) ** 2


def loss_F(
    F: Float[Array, "B ..."],
    x: Float[Array, "B ..."],
    eps: Float[Array, "B ..."],
    sigma: Float[Array, " B"],
    sigma_data: float,
    sigma_in: Float[Array, " B"] | Float[Array, ""] | float,
) -> Float[Array, " B"]:
    """loss = w |F - c_nrm v|^2, the mean over one example's pixels (App. E, eqs. 28-35).

    Equal to lambda |D - x|^2, and stable at small sigma, where lambda times the rounding of a
    half-precision D is not. With F = 0 its expectation is E[w] for data of variance
    sigma_data^2; divide by `sigmas.mean_loss_weight_F` to compare stages.
    """
    level = expand(sigma, x)
    residual = F - c_nrm(level, sigma_data) * velocity(x, level, eps, sigma_data)
    per_example = jnp.mean(jnp.square(residual), axis=range(1, x.ndim))
    return jnp.asarray(loss_weight_F(sigma, sigma_data, sigma_in)) * per_example


def ode_slope(x_sigma: Elements, D: Elements, sigma: Elements | float, sigma_in: float) -> Elements:
    """dx_sigma / dsigma = (x_sigma - D / sigma_in) / sigma, also the estimate of eps (App. D)."""
    return (x_sigma - D / sigma_in) / sigma


def to_pixels(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Maps the model's [-1, 1] to uint8; values outside are clipped."""
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def from_pixels(video: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Maps uint8 to the model's range [-1, 1], float32."""
    return video.astype(jnp.float32) / 127.5 - 1
