"""The device mesh: axes data, fsdp, group, tensor, and where batches lie on it."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from snapvideo_jax.errors import ConfigError

# data: replicas. fsdp: parameters and optimizer state split. group: FIT's patch groups split.
# tensor: heads and feed-forward width split.
AXES = ("data", "fsdp", "group", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """A mesh over `devices`; one size may be -1 and takes the rest.

    TPUs are laid out so that neighbors on an axis are neighbors on the chips' own network; slices
    that only the network of the data center joins are replicas, so nothing but gradients crosses
    it. Other devices keep their order.
    """
    shape = resolve([sizes[axis] for axis in AXES], len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise ConfigError(f"mesh.data={shape[0]} must be a multiple of the {slices} slices")
    within = (shape[0] // slices, *shape[1:])
    if slices == 1:
        laid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        laid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def ways(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts a dimension is split that lies on `axes`."""
    return math.prod(mesh.shape[name] for name in names(axes))


def names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """An entry of a PartitionSpec as the names of the axes in it."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


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


def video_sharding(mesh: Mesh, grid: tuple[int, int, int] | None) -> NamedSharding:
    """Examples over (data, fsdp), and T, rows and columns over group, as FIT's groups are split.

    grid: groups along (T, rows, columns) of the pixels; None, or a number of devices that does not
    cut them into boxes, leaves each video whole.
    """
    cut = None if grid is None else tiles(mesh.shape["group"], grid)
    if cut is None:
        return batch_sharding(mesh)
    data, fsdp, _, tensor = mesh.devices.shape
    axes = ("data", "fsdp", "T", "rows", "columns", "tensor")
    tiled = Mesh(mesh.devices.reshape(data, fsdp, *cut, tensor), axes)
    return NamedSharding(tiled, PartitionSpec(BATCH_AXES, "T", "rows", "columns"))


def tiles(parts: int, grid: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Parts along each axis of `grid`, such that each is a box and a run of cells, row-major.

    None where there is no such cut.
    """
    cut, left = [], parts
    for cells in grid:
        along = math.gcd(left, cells)
        left //= along
        cut.append(along)
        if along < cells and left > 1:
            return None
    return None if left > 1 else (cut[0], cut[1], cut[2])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, field: str, batch_size: int, accumulate: int = 1) -> None:
    """ConfigError unless `batch_size` (the value of `field`) splits evenly over the batch axes, and
    each part into `accumulate` micro-batches.
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
