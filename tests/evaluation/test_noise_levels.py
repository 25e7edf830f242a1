"""The denoising loss by noise level: its definition, and what it does not depend on."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.evaluation import noise_levels
from snapvideo_jax.evaluation.noise_levels import LEVELS

VIDEOS = np.random.RandomState(0).randint(0, 256, (48, 2, 6, 8, 3)).astype(np.uint8)
VARIANCE = float(np.var(VIDEOS.astype(np.float64) / 127.5 - 1))


class Network(nn.Module):
    """Its sizes alone: two rows of padding, and latents or none."""

    latent_shape: tuple | None
    video: tuple = (2, 8, 8)


@dataclasses.dataclass(frozen=True)
class Exact(Denoiser):
    """D = E[x | x_sigma] for white pixels; but before its latents are 1, D is wrong."""

    def conditions(self, params, batch):
        return None

    def D(self, params, x_sigma, sigma, conditions, latents):
        noised, nu = x_sigma * self.sigma_in, sigma * self.sigma_in
        D = noised * VARIANCE / (VARIANCE + nu**2)
        D = D.at[:, :, -self.pad_rows :].set(5)  # padding does not count
        if self.network.latent_shape is None:
            return D, latents
        return jnp.where(latents.mean() > 0, D, -D), latents + 1


def losses(sigma_in, latent_shape=None, seeds=range(48)):
    network = Network(latent_shape)
    denoiser = Exact(network, None, sigma_data=1.0, sigma_in=sigma_in, pad_rows=2)
    return noise_levels.losses(denoiser, {}, {"video": jnp.asarray(VIDEOS)}, jnp.array(seeds))


@pytest.mark.parametrize("latent_shape", [None, (2, 3)])
@pytest.mark.parametrize("sigma_in", [0.05, 1.0, 4.0])
def test_the_loss_of_the_exact_denoiser_is_known_whatever_sigma_in_is(sigma_in, latent_shape):
    expected = [VARIANCE * nu**2 / (VARIANCE + nu**2) for nu in LEVELS]
    result = np.asarray(losses(sigma_in, latent_shape))
    assert result.shape == (48, len(LEVELS)) and len(noise_levels.NAMES) == len(LEVELS)
    np.testing.assert_allclose(result.mean(0), expected, rtol=0.02)


def test_noise_is_a_function_of_a_videos_seed():
    first, again = losses(1.0, seeds=range(48)), losses(1.0, seeds=[*range(47), 99])
    same = np.asarray(first == again).all(1)
    assert same[:47].all() and not same[47]
