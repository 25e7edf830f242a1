"""Denoiser and whole sampler as StableHLO that jax.export reads back, without this package.

Both are traced on shapes alone, for CPUs, GPUs and TPUs at a time, with the batch size B left
open. Their parameters are arguments: a dictionary from name to array, as the safetensors files of
the same folder hold it. Attention is the plain dot product, as no kernel is known everywhere.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax import export
from jaxtyping import Array, Float, Int, UInt8

from snapvideo_jax import generator
from snapvideo_jax.denoiser import Denoiser, Latents, Params
from snapvideo_jax.diffusion import edm, sampler
from snapvideo_jax.generator import Request, SamplerSettings
from snapvideo_jax.models.layers import dot_product_attention

PLATFORMS = ("cpu", "cuda", "tpu")
DENOISER, SAMPLER = "denoiser.stablehlo", "sampler.stablehlo"

Stored = dict[str, Array]  # parameters by name, in the dtype of the files


def artifacts(
    denoiser: Denoiser,
    settings: SamplerSettings,
    params: Mapping[str, jax.ShapeDtypeStruct],
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, bytes]:
    """Returns file name -> content, for `denoise` and `sample` of a model.

    Args:
        denoiser: of the model, for any mesh.
        settings: of the sampler, fixed in the artifact, but for the frame rate.
        params: name -> shape and dtype, as stored.
        batch: a batch of training.
    """
    # No kernel of this host's devices is in a program for all.
    network = denoiser.network.clone(attend=dot_product_attention)
    plain = dataclasses.replace(denoiser, network=network)
    [B] = export.symbolic_shape("B")
    rows = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct((B, *shape), dtype)
    request = {name: rows(leaf.shape[1:], leaf.dtype) for name, leaf in batch.items()}
    del request["video"]
    noised = {}
    if denoiser.low_res_size is not None:
        low_res = denoiser.video_shape[0], *denoiser.low_res_size, 3
        request["low_res"] = rows(low_res, jnp.uint8)
        noised = {"augmentation": rows(()), "low_res_noise": rows(low_res)}
    shape = denoiser.network.latent_shape
    latents = () if shape is None else rows(shape)
    sigma = jax.ShapeDtypeStruct((), jnp.float32)
    calls = {
        DENOISER: (
            functools.partial(denoise, plain),
            (dict(params), rows(denoiser.x_shape), sigma, request | noised, latents),
        ),
        SAMPLER: (
            functools.partial(sample, plain, settings),
            (dict(params), request, rows((), jnp.int32)),
        ),
    }
    return {
        name: bytes(export.export(jax.jit(call), platforms=PLATFORMS)(*arguments).serialize())
        for name, (call, arguments) in calls.items()
    }


def denoise(
    denoiser: Denoiser,
    params: Stored,
    x_sigma: Float[Array, "B T H W 3"],
    sigma: Float[Array, ""],
    request: Request,
    latents: Latents,
) -> tuple[Float[Array, "B T H W 3"], Latents]:
    """Returns D, the estimate of x, and the latents for the next call.

    request: as the sampler's, and for an upsampler `augmentation` [B], the level of noise on the
    low resolution, and `low_res_noise`, unit noise of its shape.
    """
    nested = _nested(params)
    conditions = denoiser.conditions(nested, request)
    if denoiser.low_res_size is not None:
        low_res = edm.from_pixels(request["low_res"])
        noise = request["augmentation"], request["low_res_noise"]
        conditions = denoiser.with_low_res(conditions, low_res, *noise)
    return denoiser.D(nested, x_sigma, sigma, conditions, latents)


def sample(
    denoiser: Denoiser,
    settings: SamplerSettings,
    params: Stored,
    request: Request,
    seeds: Int[Array, " B"],
) -> UInt8[Array, "B T H W 3"]:
    """Draws the noise of `seeds` and runs all calls of the sampler; returns pixels."""
    request = request | {"window": jnp.zeros_like(seeds)}
    inputs = generator.sampler_inputs(denoiser, settings, _nested(params), request, seeds)
    state = generator.start(denoiser, settings, request, seeds)
    return denoiser.decode(sampler.sample(inputs, state))


def _nested(params: Stored) -> Params:
    """Returns the tree of the parameters, in float32."""
    tree = unflatten_dict(params, sep="/")
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
