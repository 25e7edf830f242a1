"""The device mesh: axes data, fsdp, group, tensor, and where batches lie on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from snapvideo_jax.errors import ConfigError

# data: replicas. fsdp: parameters and optimizer state split. group: FIT's patch groups split.
# tensor: heads and feed-forward width split.
AXES = ("data", "fsdp", "group", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """A mesh over `devices` in their given order; one size may be -1 and takes the rest."""
    shape = resolve([sizes[axis] for axis in AXES], len(devices))
    kinds = (AxisType.Auto,) * len(AXES)
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=kinds)


def resolve(sizes: list[int], num_devices: int) -> list[int]:
    """Replaces the -1 among the sizes; ConfigError unless their product is `num_devices`."""
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"{named}: sizes are 1 or more, and at most one is -1 (takes the rest)")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ConfigError(
            f"{named} need {known} devices{' or a multiple' if -1 in sizes else ''}, and there are "
            f"{num_devices}; their product must be {num_devices} (-1 takes the rest)"
        )
    return [num_devices // known if size == -1 else size for size in sizes]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over (data, fsdp); all other axes whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, field: str, batch_size: int) -> None:
    """ConfigError unless `batch_size` (the value of `field`) splits evenly over the batch axes."""
    ways = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % ways:
        nearest = max(1, round(batch_size / ways)) * ways
        raise ConfigError(
            f"{field}={batch_size} does not split over mesh.data x mesh.fsdp = {ways} devices; "
            f"the nearest that does is {nearest}"
        )
