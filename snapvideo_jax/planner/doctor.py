"""The sharding doctor: where each parameter would lie on a mesh, what that costs, what cannot work.

It works on shapes and sizes alone: no device is needed and nothing is compiled. What does not
divide is collected, where the training program stops at the first.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
from jax.sharding import AbstractMesh, Mesh

from snapvideo_jax import trees
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.t5 import T5Encoder
from snapvideo_jax.models.unet import UNet
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules

# Trees as large as the parameters, in float32, that a training step holds at once.
COPIES = {"parameters": 1, "moments": 2, "EMA": 1, "gradients": 1}
REPLICAS = "data"  # the axis whose devices each hold, with those of the other axes, a whole state


def mesh_of(sizes: Sequence[int]) -> Mesh:
    """A mesh of these sizes without devices, which nobody here asks for."""
    return cast(Mesh, AbstractMesh(tuple(sizes), meshes.AXES))


# Divides every size: what rules.spec_for says on it is the rule itself.
ONES = mesh_of((1,) * len(meshes.AXES))


class Row(NamedTuple):
    """One parameter. axes: of each dimension, () where it is whole. size: bytes a device."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    shard: tuple[int, ...]
    size: int


class Need(NamedTuple):
    """`size`, which is `what`, must be a multiple of the product of the sizes of `axes`."""

    axes: tuple[str, ...]
    size: int
    what: str


class Copies(NamedTuple):
    """Parameters of which a replica holds `copies` each. Sizes are bytes a device, of all COPIES.

    spare: what would not be held if they were split over all devices of the replica.
    """

    why: str
    copies: int
    parameters: int
    size: int
    spare: int


class Diagnosis(NamedTuple):
    """What the doctor found. legal: sizes that each axis may have on so many devices."""

    mesh: Mesh
    num_devices: int
    rows: list[Row]
    copies: list[Copies]
    problems: list[str]
    legal: dict[str, list[int]]

    @property
    def totals(self) -> dict[str, int]:
        """Bytes a device holds of parameters, moments, EMA and gradients."""
        held = sum(row.size for row in self.rows)
        return {name: copies * held for name, copies in COPIES.items()}


def examine(
    denoiser: Denoiser,
    params: Params,
    sizes: dict[str, int],
    num_devices: int,
    batch_size: int,
    accumulate: int,
) -> Diagnosis:
    """Lays abstract `params` and a training batch over a mesh that need not exist.

    sizes: of each axis, as the config names them; one may be -1 and takes the rest. A size that
    cannot be resolved is itself a problem, and counts as 1.
    """
    mesh, problems = _mesh(sizes, num_devices)
    try:
        meshes.check_batch(mesh, "training.batch_size", batch_size, accumulate)
    except ConfigError as error:
        problems.append(str(error))
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        try:
            rows.append(row(trees.path_name(path), leaf, mesh))
        except ConfigError as error:
            problems.append(str(error))
    needs = [*needs_of_parameters(rows), *needs_of_activations(denoiser)]
    problems += _misfits(needs, mesh, num_devices)
    needs.append(Need(meshes.BATCH_AXES, batch_size // accumulate, "the examples at a time"))
    legal = {axis: _legal(needs, axis, num_devices) for axis in meshes.AXES}
    return Diagnosis(mesh, num_devices, rows, _copies(rows, mesh), problems, legal)


def row(name: str, leaf: Any, mesh: Mesh) -> Row:
    """Where one parameter lies; ConfigError where no rule names it. Shards are rounded up."""
    spec = rules.spec_for(name, leaf.shape, ONES)
    entries = (*spec, *(None,) * (len(leaf.shape) - len(spec)))
    axes = tuple(meshes.names(entry) for entry in entries)
    parts = [meshes.ways(mesh, named) for named in axes]
    shard = tuple(-(-size // ways) for size, ways in zip(leaf.shape, parts, strict=True))
    return Row(name, leaf.shape, axes, shard, math.prod(shard) * leaf.dtype.itemsize)


def split_along(axes: Sequence[str], mesh: Mesh) -> tuple[str, ...]:
    """Those of `axes` that split anything: of a size above 1."""
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def needs_of_parameters(rows: list[Row]) -> Iterator[Need]:
    """Every dimension that a rule splits, equal ones of all parameters together."""
    found = defaultdict(list)
    for each in rows:
        for size, axes in zip(each.shape, each.axes, strict=True):
            if axes:
                found[axes, size].append(each)
    for (axes, size), split in found.items():
        one = f"{split[0].name} {split[0].shape}"
        many = f"{len(split)} parameters, such as {one}"
        yield Need(axes, size, f"a dimension of {one if len(split) == 1 else many}")


def needs_of_activations(denoiser: Denoiser) -> Iterator[Need]:
    """Heads and groups, which the devices of `tensor` and of `group` share out whole."""
    network, encoder = denoiser.network, denoiser.text_encoder
    if isinstance(encoder, T5Encoder):
        yield Need(("tensor",), encoder.heads, "the heads of the text encoder")
    if isinstance(network, FIT):
        latent = network.latent_channels // network.latent_head_channels
        between = min(latent, network.patch_channels // network.patch_head_channels)
        yield Need(("tensor",), latent, "the heads of self-attention between latents")
        yield Need(("tensor",), between, "the heads of attention between patches and latents")
        yield Need(("group",), network.latent_shape[0], "the groups of patches")
    if isinstance(network, UNet):
        yield Need(("group",), 1, "the groups of a U-Net, which has none to split")
        for level, width in enumerate(network.widths):
            if network.attends(level) or level == len(network.widths) - 1:
                heads = width // network.head_channels
                yield Need(("tensor",), heads, f"the heads of attention over {width} channels")


def _mesh(sizes: dict[str, int], num_devices: int) -> tuple[Mesh, list[str]]:
    wanted, problems = [sizes[axis] for axis in meshes.AXES], []
    try:
        wanted = meshes.resolve(wanted, num_devices)
    except ConfigError as error:
        problems.append(str(error))
    return mesh_of([max(1, size) for size in wanted]), problems


def _legal(needs: list[Need], axis: str, num_devices: int) -> list[int]:
    """Sizes of one axis, the others being 1, that divide the devices and all that lies on it."""
    wanted = [need.size for need in needs if axis in need.axes] + [num_devices]
    return [n for n in range(1, num_devices + 1) if all(size % n == 0 for size in wanted)]


def _misfits(needs: list[Need], mesh: Mesh, num_devices: int) -> list[str]:
    """A line for each size that its axes do not divide, with the nearest that do."""
    found = defaultdict(list)
    for need in needs:
        if need.size % meshes.ways(mesh, need.axes):
            found[split_along(need.axes, mesh), need.size].append(need.what)
    lines = []
    for (axes, size), whats in found.items():
        ways, named = meshes.ways(mesh, axes), " x ".join(f"mesh.{axis}" for axis in axes)
        lines.append(
            f"{named}={ways} does not divide {size}, {' and '.join(whats)}; nearest on "
            f"{num_devices} devices: {_nearest(size, ways, num_devices)}"
        )
    return lines


def _nearest(size: int, ways: int, num_devices: int) -> str:
    """The next divisors of both size and num_devices below and above `ways`."""
    legal = [n for n in range(1, num_devices + 1) if size % n == 0 == num_devices % n]
    below, above = [n for n in legal if n < ways][-1:], [n for n in legal if n > ways][:1]
    return " and ".join(map(str, below + above))


def _copies(rows: list[Row], mesh: Mesh) -> list[Copies]:
    """Rows of which a replica holds more than one copy, by the reason; the costly first."""
    devices = mesh.size // mesh.shape[REPLICAS]
    held = defaultdict(list)
    for each in rows:
        axes = tuple(axis for axis in meshes.AXES if axis in itertools.chain(*each.axes))
        copies = devices // meshes.ways(mesh, axes)
        if copies > 1:
            held[_why(axes, mesh), copies].append(each)
    found = []
    for (why, copies), some in held.items():
        size = sum(COPIES.values()) * sum(each.size for each in some)
        found.append(Copies(why, copies, len(some), size, size - size // copies))
    return sorted(found, key=lambda copies: -copies.spare)


def _why(axes: tuple[str, ...], mesh: Mesh) -> str:
    """Why devices hold the same of a parameter whose dimensions lie on `axes`."""
    if not axes:
        return "the rule splits nothing: norms, biases and small tables"
    idle = [a for a in split_along(meshes.AXES, mesh) if a not in (*axes, REPLICAS)]
    split = split_along(axes, mesh)
    if not split:
        return f"the rule splits over {' and '.join(axes)}, of size 1"
    return f"the rule splits over {' and '.join(split)}, not over {' and '.join(idle)}"
