"""Attention on a mesh: each device attends for its own examples, groups, heads and latents.

Left alone, the compiler gathers patch tokens to attend within groups, since it merges the axes of
examples and groups. So attention runs in a shard_map, which sends nothing but ungrouped tokens: the
latents of the global layers, the only thing that FIT's groups exchange, or all tokens of a DiT. In
such a layer the devices exchange queries, keys and values so that each holds all tokens for some of
the heads, attend, and exchange the result back (Ulysses). Where heads do not divide, keys and
values are gathered.

Inside the shard_map a TPU uses the kernel of pallas_attention.py and a GPU that of cuDNN wherever
they fit: these keep the scores on the chip instead of writing them to memory.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from snapvideo_jax.models.layers import Attend, dot_product_attention
from snapvideo_jax.parallel import cudnn_attention, pallas_attention
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel.mesh import BATCH_AXES


class Kernel(NamedTuple):
    """Attention as one program of a device.

    attend: (q, k, v, and a mask if there is one) -> attention. fits: whether it takes (q, k).
    """

    name: str
    attend: Callable[..., Array]
    fits: Callable[[Array, Array], bool]


PLAIN = Kernel("plain", dot_product_attention, lambda q, k: True)
PALLAS = Kernel("pallas", pallas_attention.attention, pallas_attention.fits)
CUDNN = Kernel("cudnn", cudnn_attention.attention, cudnn_attention.fits)


def fastest_kernel(mesh: Mesh) -> Kernel:
    """Returns the kernel of a mesh's devices; PLAIN where they have none."""
    if mesh.devices.flat[0].platform == "tpu":
        return PALLAS
    if mesh.local_devices and cudnn_attention.runs_on(mesh.local_devices[0]):
        return CUDNN
    return PLAIN


def for_mesh(mesh: Mesh, choice: str = "fastest") -> Attend:
    """Returns the attention for a mesh, split over its devices.

    choice: "fastest", by the devices' kernel where it fits, or "plain", by the dot product.
    """
    kernel = fastest_kernel(mesh) if choice == "fastest" else PLAIN
    if mesh.size == 1 and kernel is PLAIN:
        return dot_product_attention
    return functools.partial(attend, kernel=kernel, mesh=mesh)


def kernel_name(attend: Attend) -> str:
    """Returns the name of the kernel of an attention that `for_mesh` made."""
    return attend.keywords["kernel"].name if isinstance(attend, functools.partial) else PLAIN.name


def attend(
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    mask: Bool[Array, "*b k"] | None = None,
    *,
    kernel: Kernel,
    mesh: Mesh,
) -> Float[Array, "*b n A d"]:
    """Attends on `mesh`, each device with `kernel` where it fits, else with the plain dot product.

    Sizes that do not split evenly are left to the compiler.
    """
    spec = specs(q.ndim, mask is not None)
    if not _splits(mesh, spec.q, q) or not _splits(mesh, spec.keys, k):
        return dot_product_attention(q, k, v, mask)
    masks, mask_specs = ((), ()) if mask is None else ((mask,), (spec.mask,))
    return jax.shard_map(
        functools.partial(per_device(mesh, spec, heads=q.shape[-2]), kernel),
        mesh=mesh,
        in_specs=(spec.q, spec.keys, spec.keys, *mask_specs),
        out_specs=spec.q,
        check_vma=False,
    )(q, k, v, *masks)


class Specs(NamedTuple):
    """The axes over which queries, keys (and values) and the mask of the keys are split."""

    q: PartitionSpec
    keys: PartitionSpec
    mask: PartitionSpec
    split_keys: bool  # whether the keys that a query sees lie on several devices


def specs(ndim: int, masked: bool) -> Specs:
    """Returns the specs of attention within groups [B, G, n, A, d], or of latents [B, n, A, d].

    Without a mask latents attend to latents. With one they attend to conditions, which every device
    holds.
    """
    if ndim == 5:
        grouped = PartitionSpec(BATCH_AXES, "group", None, "tensor", None)
        mask = PartitionSpec(BATCH_AXES, "group", None)
        return Specs(q=grouped, keys=grouped, mask=mask, split_keys=False)
    latents = PartitionSpec(BATCH_AXES, "group", "tensor", None)
    everywhere = PartitionSpec(BATCH_AXES, None, "tensor", None)
    keys = everywhere if masked else latents
    return Specs(q=latents, keys=keys, mask=PartitionSpec(BATCH_AXES), split_keys=not masked)


def per_device(mesh: Mesh, spec: Specs, heads: int) -> Callable[..., Array]:
    """Returns what each device runs: (kernel, q, k, v, and a mask if there is one) -> attention."""
    if not spec.split_keys or mesh.shape["group"] == 1:
        return local
    return exchange_heads if heads % meshes.ways(mesh, ("group", "tensor")) == 0 else gather_keys


def local(
    kernel: Kernel,
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    *mask: Bool[Array, "*b k"],
) -> Float[Array, "*b n A d"]:
    """Attends to the keys that this device holds; sends nothing."""
    return (kernel.attend if kernel.fits(q, k) else dot_product_attention)(q, k, v, *mask)


def exchange_heads(
    kernel: Kernel,
    q: Float[Array, "b n A d"],
    k: Float[Array, "b k A d"],
    v: Float[Array, "b k A d"],
) -> Float[Array, "b n A d"]:
    """Exchanges some latents with all heads for all latents with some heads, attends, swaps back.

    These are four exchanges: of queries, keys, values and the result.
    """
    swap = functools.partial(jax.lax.all_to_all, axis_name="group", tiled=True)
    out = local(kernel, *(swap(x, split_axis=2, concat_axis=1) for x in (q, k, v)))
    return swap(out, split_axis=1, concat_axis=2)


def gather_keys(
    kernel: Kernel,
    q: Float[Array, "b n A d"],
    k: Float[Array, "b k A d"],
    v: Float[Array, "b k A d"],
) -> Float[Array, "b n A d"]:
    """Gathers the keys and values of all latents, then attends."""
    k, v = (jax.lax.all_gather(x, "group", axis=1, tiled=True) for x in (k, v))
    return local(kernel, q, k, v)


def _splits(mesh: Mesh, spec: PartitionSpec, x: Array) -> bool:
    """Returns whether `spec` cuts x into equal parts, one a device."""
    ways = [meshes.ways(mesh, axes) for axes in spec]
    return x.ndim == len(spec) and all(
        size % parts == 0 for size, parts in zip(x.shape, ways, strict=True)
    )
