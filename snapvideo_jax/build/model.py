"""Config -> network and denoiser."""

import jax.numpy as jnp

from snapvideo_jax.build.config import Config
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.layers import Attend, dot_product_attention
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.models.t5 import T5Encoder
from snapvideo_jax.models.unet import UNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def padded_video(config: Config) -> tuple[int, int, int]:
    """(T, H, W) as the network sees it."""
    return config.data.num_frames, config.data.height + config.data.pad_rows, config.data.width


def network(config: Config, attend: Attend = dot_product_attention) -> FIT | UNet:
    """The denoiser's network; ConfigError for sizes that do not fit each other."""
    model = config.model
    common = {
        "video": padded_video(config),
        "conditioning_channels": model.conditioning_channels,
        "dropout": model.dropout,
        "remat": model.remat,
        "dtype": DTYPES[model.dtype],
        "attend": attend,
    }
    if model.name == "unet":
        unet = model.unet
        return UNet(
            channels=unet.channels,
            multipliers=tuple(unet.multipliers),
            residual_blocks=unet.residual_blocks,
            attention_levels=tuple(unet.attention_levels),
            head_channels=unet.head_channels,
            **common,
        )
    fit = model.fit
    return FIT(
        cut=Grouping(fit.patch, tuple(fit.group)),
        patch_channels=fit.patch_channels,
        latents=fit.latents,
        latent_channels=fit.latent_channels,
        blocks=fit.blocks,
        global_layers=fit.global_layers,
        patch_head_channels=fit.patch_head_channels,
        latent_head_channels=fit.latent_head_channels,
        table_std=fit.table_std,
        unroll=fit.unroll,
        **common,
    )


def denoiser(
    config: Config, vocabulary_size: int, attend: Attend = dot_product_attention
) -> Denoiser:
    """Network, text encoder (None where states are stored) and coefficients."""
    text, diffusion = config.model.text_encoder, config.diffusion
    encoder = None
    if text.source == "trained":
        encoder = T5Encoder(
            vocabulary_size=vocabulary_size,
            channels=text.channels,
            heads=text.heads,
            head_channels=text.head_channels,
            hidden=text.hidden,
            layers=text.layers,
            dtype=DTYPES[config.model.dtype],
        )
    return Denoiser(
        network(config, attend),
        encoder,
        diffusion.sigma_data,
        diffusion.sigma_in,
        config.data.pad_rows,
        tuple(config.data.low_res) or None,
        diffusion.image_sigma_in,
    )
