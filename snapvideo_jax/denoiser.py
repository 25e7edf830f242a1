"""D from F: where the noise law and the network meet.

Pixels -> model range and padding, text -> states, an upsampler's low resolution, coefficients in
float32 around the network, and latent self-conditioning (paper 3.4) for networks that carry
latents. Everything is a pure function of parameters.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from snapvideo_jax.diffusion import edm
from snapvideo_jax.diffusion.augmentation import corrupt, resize
from snapvideo_jax.models.conditioning import Conditions

Params = Any
Latents = Any


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Static description; parameters come in as {"network": ..., "text_encoder": ...}.

    text_encoder is None where batches carry stored states (`text`) instead of ids (`text_ids`).
    pad_rows: rows of value 0 under the picture that make its height fit the network.
    low_res_size: (height, width) in pixels of the stage before; None for a first stage.
    image_sigma_in: of images in training, all frames of which then share one noise, so that T
    frames say no more than one (Table 3); 0: images are videos.
    """

    network: nn.Module
    text_encoder: nn.Module | None
    sigma_data: float
    sigma_in: float
    pad_rows: int
    low_res_size: tuple[int, int] | None = None
    image_sigma_in: float = 0.0

    @property
    def video_shape(self) -> tuple[int, int, int]:
        """(T, H, W) of a video's pixels, without padding."""
        T, H, W = self.network.video
        return T, H - self.pad_rows, W

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """Of one video as the network reads it, with padding."""
        return (*self.network.video, 3)

    def init(self, key: PRNGKeyArray, batch: dict[str, Array]) -> Params:
        """Draws parameters for batches shaped like `batch`."""
        network_key, text_key = jax.random.split(key)
        params = {}
        if self.text_encoder is not None:
            text = self.text_encoder.init(text_key, batch["text_ids"], batch["text_mask"])
            params["text_encoder"] = text["params"]
        x, log_sigma, conditions, latents = self.inputs(params, batch)
        c_noise = edm.c_noise(log_sigma)
        variables = self.network.init(network_key, x, c_noise, conditions, latents)
        return params | {"network": variables["params"]}

    def cast_kernels(self, params: Params) -> Params:
        """Casts kernels, which are only multiplied, to the network's dtype.

        Results are the same bits, from half the memory; updates need kernels in float32.
        """
        dtype = self.network.dtype

        def cast(path: tuple, leaf: Array) -> Array:
            if path[-1].key != "kernel":
                return leaf
            if dtype == jnp.bfloat16:  # the same rounding, and a TPU is slow at a cast alone
                leaf = jax.lax.reduce_precision(leaf, exponent_bits=8, mantissa_bits=7)
            return leaf.astype(dtype)

        return jax.tree_util.tree_map_with_path(cast, params)

    def inputs(
        self, params: Params, batch: dict[str, Array]
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, " B"], Conditions, Latents]:
        """Returns `batch` as `F` reads it, without noise: to initialize, and to count work."""
        conditions, x = self.conditions(params, batch), self.encode(batch["video"])
        log_sigma = jnp.zeros(x.shape[0])
        if self.low_res_size is not None:
            low_res, no_noise = self.shrink(x), jnp.zeros(x.shape[0])
            eps = jnp.zeros_like(low_res)
            conditions = self.with_low_res(conditions, low_res, no_noise, eps)
        return x, log_sigma, conditions, self.no_latents(x.shape[0])

    def encode(self, video: UInt8[Array, "B T H W 3"]) -> Float[Array, "B T h W 3"]:
        """Maps pixels to x in [-1, 1], with the padding rows below."""
        return self.pad(edm.from_pixels(video))

    def pad(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B T h W 3"]:
        """Adds the rows of value 0 below the picture."""
        return jnp.pad(x, ((0, 0), (0, 0), (0, self.pad_rows), (0, 0), (0, 0)))

    def crop(self, x: Float[Array, "B T h W 3"]) -> Float[Array, "B T H W 3"]:
        """Inverts `pad`."""
        return x[:, :, : x.shape[2] - self.pad_rows]

    def decode(self, x: Float[Array, "B T h W 3"]) -> UInt8[Array, "B T H W 3"]:
        """Inverts `encode`: crops the padding and clips to pixels."""
        return edm.to_pixels(self.crop(x))

    def conditions(self, params: Params, batch: dict[str, Array]) -> Conditions:
        """Returns what the network is conditioned on; encodes ids, and reads stored states."""
        text: Any = batch.get("text")
        if self.text_encoder is not None:
            variables = {"params": params["text_encoder"]}
            text = self.text_encoder.apply(variables, batch["text_ids"], batch["text_mask"])
        return Conditions(batch["frame_interval"], batch["source_size"], text, batch["text_mask"])

    def with_low_res(
        self,
        conditions: Conditions,
        low_res: Float[Array, "B T h w 3"],
        augmentation: Float[Array, " B"],
        eps: Float[Array, "B T h w 3"],
    ) -> Conditions:
        """Adds to an upsampler's conditions the stage before, noised, then enlarged (paper 3.5).

        augmentation: the level of that noise, from 0 to 1.
        """
        noised = corrupt(low_res, augmentation, eps)
        enlarged = self.pad(resize(noised, self.video_shape[1:]))
        return dataclasses.replace(conditions, low_res=enlarged, augmentation=augmentation)

    def shrink(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B T h w 3"]:
        """Shrinks x (padded) to the low resolution, which an upsampler learns to invert."""
        assert self.low_res_size is not None, "a first stage has no low resolution"
        return resize(self.crop(x), self.low_res_size)

    def no_latents(self, batch_size: Any) -> Latents:
        """Returns the latents before the first call: zeros, or () for a network without.

        batch_size: a number, or a symbol where a program is exported for any.
        """
        if self.network.latent_shape is None:
            return ()
        return jnp.zeros((batch_size,) + self.network.latent_shape, jnp.float32)

    def sigma_in_of(self, frame_interval: Float[Array, " B"]) -> Float[Array, " B"] | float:
        """Returns sigma_in, of each example where images have their own."""
        if not self.image_sigma_in:
            return self.sigma_in
        return jnp.where(frame_interval == 0, self.image_sigma_in, self.sigma_in)

    def F(
        self,
        params: Params,
        x_sigma: Float[Array, "B T H W C"],
        log_sigma: Float[Array, " B"],
        conditions: Conditions,
        latents: Latents,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T H W C"], Latents]:
        """F, latents = network(c_in x_sigma; c_noise, conditions, latents), with F in float32.

        Dropout is on where `dropout_key` is given.
        """
        scale = self.sigma_in_of(conditions.frame_interval)
        c_in = edm.c_in(jnp.exp(log_sigma), self.sigma_data, scale)
        out, latents = self.network.apply(
            {"params": params["network"]},
            edm.expand(c_in, x_sigma) * x_sigma,
            edm.c_noise(log_sigma),
            conditions,
            latents,
            train=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
        )
        return out.astype(jnp.float32), latents

    def D(
        self,
        params: Params,
        x_sigma: Float[Array, "B T H W C"],
        sigma: Float[Array, ""],
        conditions: Conditions,
        latents: Latents,
    ) -> tuple[Float[Array, "B T H W C"], Latents]:
        """D = c_skip x_sigma + c_out F, the estimate of x, at one level for the whole batch."""
        log_sigma = jnp.broadcast_to(jnp.log(sigma), x_sigma.shape[:1])
        F, latents = self.F(params, x_sigma, log_sigma, conditions, latents)
        # With the videos' sigma_in: images with their own are not sampled (sampling/generate.py).
        return edm.denoised(x_sigma, F, sigma, self.sigma_data, self.sigma_in), latents

    def self_conditioned_F(
        self,
        params: Params,
        x_sigma: Float[Array, "B T H W C"],
        log_sigma: Float[Array, " B"],
        conditions: tuple[Conditions, Conditions],
        keep_latents: Bool[Array, " B"],
        dropout_keys: tuple[PRNGKeyArray, PRNGKeyArray],
    ) -> Float[Array, "B T H W C"]:
        """Returns F of the second of two passes over the same noisy input (as RIN).

        The first pass starts from zero latents; its latents, cut from the gradient and zeroed
        where `keep_latents` is False, start the second. Each pass has its own text dropout
        (`conditions`) and dropout key. A network without latents needs the second pass alone.
        """
        latents = self.no_latents(x_sigma.shape[0])
        if self.network.latent_shape is not None:
            constant, first = jax.lax.stop_gradient((params, conditions[0]))
            looped = dataclasses.replace(self, network=self.network.looped())
            _, new = looped.F(constant, x_sigma, log_sigma, first, latents, dropout_keys[0])
            latents = jnp.where(edm.expand(keep_latents, new), new, 0)
        return self.F(params, x_sigma, log_sigma, conditions[1], latents, dropout_keys[1])[0]
