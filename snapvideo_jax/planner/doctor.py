"""The sharding doctor: where each parameter would lie on a mesh, what that costs, what cannot work.

It works on shapes and sizes alone: no device is needed and nothing is compiled. It lists all sizes
that do not divide, where the training program stops at the first.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from snapvideo_jax import trees
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.dit import DiT
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.t5 import T5Encoder
from snapvideo_jax.models.unet import UNet
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel import rules
from snapvideo_jax.parallel.mesh import AnyMesh

# Trees as large as the parameters, in float32, that a training step holds at the same time.
COPIES = {"parameters": 1, "moments": 2, "EMA": 1, "gradients": 1}
REPLICAS = "data"  # the axis whose devices each hold, with those of the other axes, a whole state


def abstract_mesh(sizes: Sequence[int]) -> AbstractMesh:
    """Returns a mesh of these sizes without devices, which nothing here needs."""
    return AbstractMesh(tuple(sizes), meshes.AXES)


# Divides every size: what rules.spec_for says on it is the rule itself.
ONES = abstract_mesh((1,) * len(meshes.AXES))


class Placement(NamedTuple):
    """Where one parameter lies.

    axes: of the mesh, that split each dimension; () where it is whole. shard: what one device has
    of each dimension. size: bytes a device.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    shard: tuple[int, ...]
    size: int


class Requirement(NamedTuple):
    """The product of the sizes of `axes` must divide `size`, which `subject` names in words."""

    axes: tuple[str, ...]
    size: int
    subject: str


class Copies(NamedTuple):
    """Parameters of which a replica holds `copies` each, for one `reason`.

    Sizes are bytes a device, of all COPIES. spare: what a device would not hold if they were split
    over all devices of the replica.
    """

    reason: str
    copies: int
    parameters: int
    size: int
    spare: int


class Diagnosis(NamedTuple):
    """All that the doctor says. legal: sizes that each axis may have on so many devices."""

    mesh: AnyMesh
    num_devices: int
    placements: list[Placement]
    copies: list[Copies]
    problems: list[str]
    legal: dict[str, list[int]]

    @property
    def totals(self) -> dict[str, int]:
        """Bytes a device holds of parameters, moments, EMA and gradients."""
        parameters = sum(placement.size for placement in self.placements)
        return {name: copies * parameters for name, copies in COPIES.items()}


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
    placements = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        try:
            placements.append(placement(trees.path_name(path), leaf, mesh))
        except ConfigError as error:
            problems.append(str(error))
    requirements = [*parameter_requirements(placements), *activation_requirements(denoiser)]
    problems += _misfits(requirements, mesh, num_devices)
    examples = batch_size // accumulate
    requirements.append(Requirement(meshes.BATCH_AXES, examples, "the examples at a time"))
    return Diagnosis(
        mesh=mesh,
        num_devices=num_devices,
        placements=placements,
        copies=_copies(placements, mesh),
        problems=problems,
        legal={axis: _legal(requirements, axis, num_devices) for axis in meshes.AXES},
    )


def placement(name: str, leaf: Any, mesh: AnyMesh) -> Placement:
    """Finds where one parameter lies; shards are rounded up.

    Raises ConfigError where no rule names it.
    """
    spec = rules.spec_for(name, leaf.shape, ONES)
    entries = (*spec, *(None,) * (len(leaf.shape) - len(spec)))
    axes = tuple(meshes.names(entry) for entry in entries)
    ways = [meshes.ways(mesh, dimension_axes) for dimension_axes in axes]
    shard = tuple(-(-size // parts) for size, parts in zip(leaf.shape, ways, strict=True))
    return Placement(
        name=name,
        shape=leaf.shape,
        axes=axes,
        shard=shard,
        size=math.prod(shard) * leaf.dtype.itemsize,
    )


def splitting_axes(axes: Sequence[str], mesh: AnyMesh) -> tuple[str, ...]:
    """Returns those of `axes` that split anything: of a size above 1."""
    return tuple(axis for axis in axes if mesh.shape[axis] > 1)


def parameter_requirements(placements: list[Placement]) -> Iterator[Requirement]:
    """Yields every size of a dimension that a rule splits, with the parameters that have it."""
    by_size = defaultdict(list)
    for placement in placements:
        for size, axes in zip(placement.shape, placement.axes, strict=True):
            if axes:
                by_size[axes, size].append(placement)
    for (axes, size), some in by_size.items():
        one = f"{some[0].name} {some[0].shape}"
        many = f"{len(some)} parameters, such as {one}"
        yield Requirement(axes, size, f"a dimension of {one if len(some) == 1 else many}")


def activation_requirements(denoiser: Denoiser) -> Iterator[Requirement]:
    """Yields numbers of heads and groups, which devices of `tensor` and `group` share out whole."""
    network, encoder = denoiser.network, denoiser.text_encoder
    if isinstance(encoder, T5Encoder):
        yield Requirement(("tensor",), encoder.heads, "the heads of the text encoder")
    if isinstance(network, FIT):
        latent = network.latent_channels // network.latent_head_channels
        patch = min(latent, network.patch_channels // network.patch_head_channels)
        yield Requirement(("tensor",), latent, "the heads of self-attention between latents")
        yield Requirement(("tensor",), patch, "the heads of attention between patches and latents")
        yield Requirement(("group",), network.latent_shape[0], "the groups of patches")
    if isinstance(network, DiT):
        heads = network.channels // network.head_channels
        yield Requirement(("tensor",), heads, "the heads of attention")
        frames, places = network.video[0], network.frame.tokens
        if network.factorised:
            yield Requirement(
                ("group",), frames, "the frames that attention over space keeps apart"
            )
            yield Requirement(("group",), places, "the places that attention over time keeps apart")
        else:
            yield Requirement(("group",), frames * places, "the patches of a video")
    if isinstance(network, UNet):
        yield Requirement(("group",), 1, "the groups of a U-Net, which has none to split")
        for level, width in enumerate(network.widths):
            if network.attends(level) or level == len(network.widths) - 1:
                heads = width // network.head_channels
                subject = f"the heads of attention over {width} channels"
                yield Requirement(("tensor",), heads, subject)


def _mesh(sizes: dict[str, int], num_devices: int) -> tuple[AbstractMesh, list[str]]:
    """Resolves the mesh, and lists what keeps it from being resolved."""
    mesh_sizes, problems = [sizes[axis] for axis in meshes.AXES], []
    try:
        mesh_sizes = meshes.resolve(mesh_sizes, num_devices)
    except ConfigError as error:
        problems.append(str(error))
    return abstract_mesh([max(1, size) for size in mesh_sizes]), problems


def _legal(requirements: list[Requirement], axis: str, num_devices: int) -> list[int]:
    """Lists the sizes of one axis, others being 1, that divide the devices and what it splits."""
    sizes = [each.size for each in requirements if axis in each.axes] + [num_devices]
    return [n for n in range(1, num_devices + 1) if all(size % n == 0 for size in sizes)]


def _misfits(requirements: list[Requirement], mesh: AnyMesh, num_devices: int) -> list[str]:
    """Writes a line for each size that its axes do not divide, with the nearest that do."""
    subjects = defaultdict(list)
    for each in requirements:
        if each.size % meshes.ways(mesh, each.axes):
            subjects[splitting_axes(each.axes, mesh), each.size].append(each.subject)
    lines = []
    for (axes, size), some in subjects.items():
        ways, fields = meshes.ways(mesh, axes), " x ".join(f"mesh.{axis}" for axis in axes)
        lines.append(
            f"{fields}={ways} does not divide {size}, {' and '.join(some)}; nearest on "
            f"{num_devices} devices: {_nearest(size, ways, num_devices)}"
        )
    return lines


def _nearest(size: int, ways: int, num_devices: int) -> str:
    """Returns the next divisors of both size and num_devices, below and above `ways`."""
    legal = [n for n in range(1, num_devices + 1) if size % n == 0 == num_devices % n]
    below, above = [n for n in legal if n < ways][-1:], [n for n in legal if n > ways][:1]
    return " and ".join(map(str, below + above))


def _copies(placements: list[Placement], mesh: AnyMesh) -> list[Copies]:
    """Sums the parameters of which a replica holds several copies, by reason; the costly first."""
    devices = mesh.size // mesh.shape[REPLICAS]
    groups = defaultdict(list)
    for each in placements:
        axes = tuple(axis for axis in meshes.AXES if axis in itertools.chain(*each.axes))
        copies = devices // meshes.ways(mesh, axes)
        if copies > 1:
            groups[_reason(axes, mesh), copies].append(each)
    sums = []
    for (reason, copies), some in groups.items():
        size = sum(COPIES.values()) * sum(each.size for each in some)
        sums.append(
            Copies(
                reason=reason,
                copies=copies,
                parameters=len(some),
                size=size,
                spare=size - size // copies,
            )
        )
    return sorted(sums, key=lambda copies: -copies.spare)


def _reason(axes: tuple[str, ...], mesh: AnyMesh) -> str:
    """Says why devices hold the same of a parameter whose dimensions lie on `axes`."""
    if not axes:
        return "the rule splits nothing: norms, biases and small tables"
    busy = splitting_axes(axes, mesh)
    idle = [a for a in splitting_axes(meshes.AXES, mesh) if a not in (*axes, REPLICAS)]
    if not busy:
        return f"the rule splits over {' and '.join(axes)}, of size 1"
    return f"the rule splits over {' and '.join(busy)}, not over {' and '.join(idle)}"
