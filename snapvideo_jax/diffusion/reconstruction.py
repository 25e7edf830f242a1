"""Reconstruction guidance: known frames lead the others (Ho et al. 2022, Video Diffusion Models).

The known frames x_a enter the network noised as the others are, z_a = x_a / sigma_in + sigma eps_a,
and the estimate of the unknown ones moves to where the network reconstructs x_a better:

  D_b <- D_b - w_r / (2 sigma_in) grad_b |x_a - D_a(z)|^2,

which at w_r = 1 is E[x_b | z, x_a] as sigma -> 0, where x_a given z tends to a normal of mean D_a
and deviation sigma sigma_in. (The method's alpha is 1 / sigma_in here.) The paper conditions on
frames with it to make long videos (App. C.5).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from snapvideo_jax.diffusion.edm import add_noise
from snapvideo_jax.diffusion.guidance import extrapolate


class Known(NamedTuple):
    """The known frames. What x and eps hold at the other frames is never read.

    eps: unit noise, the same at every call; a function of the sample's seed.
    """

    mask: Bool[Array, "B T"] | Bool[Array, " T"]
    x: Float[Array, "B T ..."]
    eps: Float[Array, "B T ..."]

    def where(
        self, known: Float[Array, "B T ..."], unknown: Float[Array, "B T ..."]
    ) -> Float[Array, "B T ..."]:
        """Returns the frames of `known` where this knows them, else those of `unknown`."""
        mask = jnp.atleast_2d(self.mask).reshape((-1, self.x.shape[1]) + (1,) * (self.x.ndim - 2))
        return jnp.where(mask, known, unknown)

    def insert(
        self, x: Float[Array, "B T ..."], sigma: Float[Array, ""], sigma_in: float
    ) -> Float[Array, "B T ..."]:
        """Puts the known frames, noised to level sigma, in their places in x_sigma."""
        return self.where(add_noise(self.x, sigma, self.eps, sigma_in), x)


class Guidance(NamedTuple):
    """That of a step: w of the text (`guidance.extrapolate`), and w_r of the known frames."""

    text: Float[Array, ""]
    known: Float[Array, ""]


def guide(
    denoise: Callable, cond: Any, uncond: Any, rescale: Callable, known: Known, sigma_in: float
) -> Callable:
    """Returns (x, sigma, `Guidance`, carry) -> (guided D, carry), from a model's denoiser.

    `uncond` None: no guidance by the text, whose weight is then not read. The gradient runs through
    the conditional estimate alone, in a batch of its own: half the backward work of a doubled one.
    Latents that come in are constants. The memory is one backward pass of the network, so let the
    network compute its blocks again; to checkpoint the denoiser as a whole would save nothing, as
    its backward pass follows at once.
    At the known frames D is x_a: a sampler that starts from `known.insert` moves them along eps_a.
    """

    def guided(x: Float[Array, "B T ..."], sigma: Float[Array, ""], guidance: Guidance, carry: Any):
        z = known.insert(x, sigma, sigma_in)
        estimate = lambda z: denoise(z, sigma, cond, carry)
        D, pull, new_carry = jax.vjp(estimate, z, has_aux=True)
        # grad |D_a - x_a|^2 = 2 pull(D_a - x_a)
        (half_gradient,) = pull(known.where(D - known.x, jnp.zeros_like(D)))
        if uncond is not None:
            D = extrapolate(D, denoise(z, sigma, uncond, carry)[0], guidance.text)
        D = D - guidance.known / sigma_in * half_gradient
        D = rescale(known.where(known.x, D))
        return known.where(known.x, D), new_carry

    return guided
