"""The device mesh: axes data, fsdp, group, tensor, and where batches lie on it."""

import math
from collections.abc import Sequence
from typing import Any

from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from snapvideo_jax.errors import ConfigError

# data: replicas. fsdp: parameters and optimizer state split. group: FIT's patch groups split.
# tensor: heads and feed-forward width split.
AXES = ("data", "fsdp", "group", "tensor")
BATCH_AXES = ("data", "fsdp")

AnyMesh = Mesh | AbstractMesh  # with devices or without


def make_mesh(sizes: dict[str, int], devices: Sequence[Any]) -> Mesh:
    """Makes a mesh over JAX `devices`. One size may be -1; it takes the devices that are left.

    Neighbors on an axis are neighbors on the TPUs' own network. Slices that only the data center's
    network joins become replicas, so that nothing but gradients crosses it. Other devices keep
    their order.
    """
    shape = resolve([sizes[axis] for axis in AXES], len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise ConfigError(f"mesh.data={shape[0]} must be a multiple of the {slices} slices")
    within = (shape[0] // slices, *shape[1:])
    if slices == 1:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def ways(mesh: AnyMesh, axes: str | tuple[str, ...] | None) -> int:
    """Returns into how many parts a dimension that lies on `axes` is split."""
    return math.prod(mesh.shape[name] for name in names(axes))


def names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the names of the axes in one entry of a PartitionSpec."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def resolve(sizes: list[int], num_devices: int) -> list[int]:
    """Replaces the -1 among the sizes; raises ConfigError unless their product is `num_devices`."""
    fields = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ConfigError(f"{fields}: sizes are 1 or more, and at most one is -1 (takes the rest)")
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        multiple = " or a multiple" if -1 in sizes else ""
        raise ConfigError(
            f"{fields} need {known} devices{multiple}, and there are {num_devices}; give sizes "
            f"whose product is {num_devices} (-1 takes the rest)"
        )
    return [num_devices // known if size == -1 else size for size in sizes]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits examples over (data, fsdp) and nothing else."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def video_sharding(mesh: Mesh, groups: tuple[int, int, int] | None) -> NamedSharding:
    """Returns the sharding that splits examples over (data, fsdp), and their pixels over group.

    A device then holds the pixels of its own patch groups. groups: their number along (T, rows,
    columns). Videos stay whole without it, and where devices cannot each have a box of groups.
    """
    split = None if groups is None else tiles(mesh.shape["group"], groups)
    if split is None:
        return batch_sharding(mesh)
    data, fsdp, _, tensor = mesh.devices.shape
    axes = ("data", "fsdp", "T", "rows", "columns", "tensor")
    tiled = Mesh(mesh.devices.reshape(data, fsdp, *split, tensor), axes)
    return NamedSharding(tiled, PartitionSpec(BATCH_AXES, "T", "rows", "columns"))


def tiles(parts: int, groups: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Returns the parts along each axis of `groups`; each is a box and a run of cells, row-major.

    None where `parts` boxes cannot be such runs.
    """
    split, left = [], parts
    for cells in groups:
        along = math.gcd(left, cells)
        left //= along
        split.append(along)
        if along < cells and left > 1:
            return None
    return None if left > 1 else (split[0], split[1], split[2])


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: AnyMesh, field: str, batch_size: int, accumulate: int = 1) -> None:
    """Raises ConfigError unless `batch_size`, the value of `field`, splits evenly.

    It splits over the batch axes, and each part into `accumulate` micro-batches.
    """
    parts = ways(mesh, BATCH_AXES)
    if batch_size % (parts * accumulate) == 0:
        return
    nearest = max(1, round(batch_size / parts / accumulate)) * parts * accumulate
    micro = f" and training.accumulate = {accumulate}" if accumulate > 1 else ""
    raise ConfigError(
        f"{field}={batch_size} does not split over mesh.data x mesh.fsdp = {parts} devices{micro}; "
        f"the nearest that does is {nearest}"
    )
