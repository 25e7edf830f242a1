"""The denoising loss by noise level: how well real videos are restored, at levels that all share.

Levels are nu = sigma sigma_in, in units of x, so a level means the same noise whatever sigma_in is;
and the error is that of D, without the weights of training. So two models are comparable whose
training losses are not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from snapvideo_jax import keys
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules

LEVELS = (0.125, 0.5, 2.0, 8.0, 32.0)  # noise of unit pixels is 1
NAMES = tuple(f"loss at noise {level:g}" for level in LEVELS)

Losses = Float[Array, "B L"]


@functools.lru_cache(maxsize=8)
def program(denoiser: Denoiser, mesh: Mesh) -> Callable[[Params, dict, Array], Losses]:
    """Returns (params, batch, seeds) -> `losses`, compiled; examples are split over the mesh."""

    def call(params: Params, batch: dict[str, Array], seeds: Int[Array, " B"]) -> Losses:
        with rules.activations_on(mesh):
            return losses(denoiser, params, batch, seeds)

    return jax.jit(call, out_shardings=meshes.batch_sharding(mesh))


def losses(
    denoiser: Denoiser, params: Params, batch: dict[str, Any], seeds: Int[Array, " B"]
) -> Losses:
    """loss = mean |D(x / s_in + sigma eps; sigma) - x|^2 at sigma = nu / s_in, for nu in LEVELS.

    eps is a function of a video's seed. Latents start from those of a first pass over the same
    input, as in training; padding does not count.
    """
    x, conditions = denoiser.encode(batch["video"]), denoiser.conditions(params, batch)
    draw = lambda seed: jax.random.normal(keys.streams(seed, 0, ("eps",))["eps"], x.shape[1:])
    eps = jax.vmap(draw)(seeds)

    def loss(nu: Float[Array, ""]) -> Float[Array, " B"]:
        sigma = nu / denoiser.sigma_in
        x_sigma = edm.add_noise(x, sigma, eps, denoiser.sigma_in)
        latents = denoiser.no_latents(x.shape[0])
        if denoiser.network.latent_shape is not None:
            _, latents = denoiser.D(params, x_sigma, sigma, conditions, latents)
        D, _ = denoiser.D(params, x_sigma, sigma, conditions, latents)
        return jnp.square(denoiser.crop(D - x)).mean((1, 2, 3, 4))

    return jnp.moveaxis(jax.lax.map(loss, jnp.asarray(LEVELS)), 0, 1)
