"""Attention by the best kernel that the devices of a mesh have, where it fits.

On a TPU that is the flash kernel, which keeps the scores on the chip instead of writing them to
memory. The compiler cannot split a kernel over devices, so it runs in a shard_map: each device has
its own examples, groups and heads, and of ungrouped queries its own part.
"""

import functools
from collections.abc import Callable

import jax
from einops import rearrange
from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from snapvideo_jax.models.layers import Attend, dot_product_attention
from snapvideo_jax.parallel.mesh import BATCH_AXES

LANES = 128  # the gradient's kernels take keys by multiples of this
FEWEST_KEYS = 2 * LANES  # scores of fewer keys are small beside the tokens
LARGEST_BLOCK = 512


def best(mesh: Mesh) -> Attend:
    """The plain dot product, or on TPUs the flash kernel wherever it fits."""
    if mesh.devices.flat[0].platform != "tpu":
        return dot_product_attention
    return functools.partial(attend, flash, mesh)


def attend(
    kernel: Callable[[Array, Array, Array], Array],
    mesh: Mesh,
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    mask: Bool[Array, "*b k"] | None = None,
) -> Float[Array, "*b n A d"]:
    """`kernel` on each device's part, or the plain dot product where that does not fit."""
    queries, keys = specs(mesh, q.ndim)
    if mask is not None or not fits(mesh, queries, q, k):
        return dot_product_attention(q, k, v, mask)
    split = jax.shard_map(
        kernel, mesh=mesh, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False
    )
    return split(q, k, v)


def specs(mesh: Mesh, ndim: int) -> tuple[PartitionSpec, PartitionSpec]:
    """Where queries and keys lie: [B, G, n, A, d], or [B, n, A, d] with all keys everywhere."""
    if ndim == 5:
        spec = PartitionSpec(BATCH_AXES, "group", None, "tensor", None)
        return spec, spec
    keys = PartitionSpec(BATCH_AXES, None, "tensor", None)
    return PartitionSpec(BATCH_AXES, "group", "tensor", None), keys


def fits(mesh: Mesh, spec: PartitionSpec, q: Array, k: Array) -> bool:
    """Whether the parts are even, and the keys many and a multiple of the kernel's lanes."""
    if q.ndim not in (4, 5) or k.shape[-3] < FEWEST_KEYS or k.shape[-3] % LANES:
        return False
    ways = [_ways(mesh, axes) for axes in spec]
    return all(size % n == 0 for size, n in zip(q.shape, ways, strict=True))


def _ways(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def flash(
    q: Float[Array, "*b n A d"], k: Float[Array, "*b k A d"], v: Float[Array, "*b k A d"]
) -> Float[Array, "*b n A d"]:
    """Softmax attention by the flash kernel of JAX for TPUs, scaled by 1 / sqrt(d)."""
    heads_first = lambda t: rearrange(t.reshape(-1, *t.shape[-3:]), "b n A d -> b A n d")
    sizes = blocks(q.shape[-3], k.shape[-3])
    scale = q.shape[-1] ** -0.5
    out = flash_attention(*map(heads_first, (q, k, v)), sm_scale=scale, block_sizes=sizes)
    return rearrange(out, "b A n d -> b n A d").reshape(q.shape)


def blocks(n: int, k: int) -> BlockSizes:
    """The largest blocks of queries and keys that divide them, forward and backward."""
    rows = max(size for size in range(1, LARGEST_BLOCK + 1) if n % size == 0)
    keys = max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if k % size == 0)
    return BlockSizes(
        block_q=rows,
        block_k_major=keys,
        block_k=keys,
        block_b=1,
        block_q_major_dkv=rows,
        block_k_major_dkv=keys,
        block_k_dkv=keys,
        block_q_dkv=rows,
        block_k_major_dq=keys,
        block_k_dq=keys,
        block_q_dq=rows,
    )
