"""Config -> network and denoiser."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from snapvideo_jax.build.config import Config
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.models.dit import DiT
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.layers import Attend
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.models.t5 import T5Encoder
from snapvideo_jax.models.unet import UNet
from snapvideo_jax.parallel import attention

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def padded_video(config: Config) -> tuple[int, int, int]:
    """Returns (T, H, W) as the network reads it."""
    return config.data.num_frames, config.data.height + config.data.pad_rows, config.data.width


def network(config: Config, attend: Attend) -> FIT | UNet | DiT:
    """Makes the denoiser's network; raises ConfigError for sizes that do not fit each other."""
    model = config.model
    common: dict[str, Any] = {
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
    if model.name == "dit":
        dit = model.dit
        return DiT(
            patch=dit.patch,
            channels=dit.channels,
            blocks=dit.blocks,
            head_channels=dit.head_channels,
            factorised=dit.factorised,
            unroll=dit.unroll,
            **common,
        )
    fit = model.fit
    return FIT(
        grouping=Grouping(fit.patch, tuple(fit.group)),
        patch_channels=fit.patch_channels,
        latents=fit.latents,
        latent_channels=fit.latent_channels,
        blocks=fit.blocks,
        global_layers=fit.global_layers,
        patch_head_channels=fit.patch_head_channels,
        latent_head_channels=fit.latent_head_channels,
        table_std=fit.table_std,
        write_scale=fit.write_scale,
        unroll=fit.unroll,
        **common,
    )


def denoiser(config: Config, vocabulary_size: int, mesh: Mesh) -> Denoiser:
    """Makes the denoiser, whose network attends on `mesh` as `model.attention` says.

    vocabulary_size: ids of the text encoder that is trained along; of no meaning where states are
    stored, as the denoiser then has no encoder.
    """
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
        network=network(config, attention.for_mesh(mesh, config.model.attention)),
        text_encoder=encoder,
        sigma_data=diffusion.sigma_data,
        sigma_in=diffusion.sigma_in,
        pad_rows=config.data.pad_rows,
        low_res_size=tuple(config.data.low_res) or None,
        image_sigma_in=diffusion.image_sigma_in,
    )
