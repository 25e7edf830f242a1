"""The law of sharding: which mesh axes split each parameter, and each axis of activations.

Two tables say it, of parameters by path and of activations by name; the weights of a published T5
encoder, which is never trained, follow `largest_axis`. Models know no mesh; they only name axes.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models import layers
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.trees import path_name

Axes = str | tuple[str, ...] | None  # of the mesh; they split one dimension

# Layers whose outputs, or whose inputs, belong to heads or hidden units:
BY_OUTPUT = "|".join(layers.BY_OUTPUT)  # q, k, v, gate, up, input_conv
BY_INPUT = "|".join(layers.BY_INPUT)  # o, down, output_conv

# The first rule whose pattern matches the end of the path (whole names only) gives the axes of the
# last dimensions; dimensions before them (the scan over blocks) stay whole. What belongs to a head
# or a hidden unit is split over tensor, so that a block needs one gather and one sum. Inputs are
# split over fsdp, and over group too, whose devices would otherwise hold copies. They are split by
# rows, so that the parts of a gathered kernel are contiguous: split by columns, each of 256 chips
# transposed all of it.
SPLIT = ("fsdp", "group")
RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    (rf"({BY_OUTPUT})/kernel", (SPLIT, "tensor")),  # [D, A d], [D, hidden]; U-Net: [3, 3, C, D]
    (rf"({BY_INPUT})/kernel", (("tensor", *SPLIT), None)),  # [A d, D], [hidden, D], [3, 3, D, D]
    (rf"({BY_OUTPUT})/bias", ("tensor",)),
    (rf"({BY_INPUT})/bias", (None,)),
    (r"\w*norm/(scale|bias)", (None,)),
    (r"network/(stem|tokens/text)/kernel", (None, SPLIT)),  # [P or E, C]; U-Net: [3, 3, 3, C]
    (r"network/head/kernel", (SPLIT, None)),  # [C, P]; U-Net: [3, 3, C, 3]
    (r"network/(stem|head|tokens/text)/bias", (None,)),
    (r"(skip|scale_shift|modulation)/kernel", (SPLIT, None)),  # [1, 1, C, D], [E, 2 D], [E, V C]
    (r"(skip|scale_shift|modulation)/bias", (None,)),
    (r"modulation_table", (None, None, SPLIT)),  # DiT: [L, 3, C]
    (r"network/positions", (None, SPLIT)),  # [n, C]
    (r"network/latent_table", ("group", None, "fsdp")),  # [G, m, D]
    (r"text_encoder/token_table/embedding", (None, SPLIT)),  # [vocabulary, E]
    (r"text_encoder/position_bias", (None, None)),  # [buckets, A]
)

# Logical names of the axes of activations (models/fit.py), and of kernels where they are used
# (models/layers.py) -> mesh axes. Tokens are ordered group by group and split like their groups, so
# a group's patch tokens stay on their chip. Kernels are gathered, and stay split over tensor alone.
ACTIVATIONS = (
    ("batch", ("data", "fsdp")),
    ("groups", "group"),
    ("tokens", "group"),  # FIT's in order of their groups, a DiT's by frames
    ("hidden", "tensor"),
)


@contextlib.contextmanager
def activations_on(mesh: Mesh) -> Iterator[None]:
    """Splits the named activations of whatever is traced inside over `mesh`, as ACTIVATIONS say."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(ACTIVATIONS):
        yield


def latents_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of latents [B, G, m, D] between calls, which is the network's."""
    return NamedSharding(mesh, PartitionSpec(meshes.BATCH_AXES, "group"))


def spec_for(name: str, shape: tuple[int, ...], mesh: meshes.AnyMesh) -> PartitionSpec:
    """Returns the axes of a parameter, of its moments or of its EMA; scalars are replicated.

    Raises ConfigError where no rule matches or an axis does not divide its dimension.
    """
    if not shape:
        return PartitionSpec()
    axes = next((axes for pattern, axes in RULES if re.search(f"(^|/){pattern}$", name)), None)
    if axes is None or len(axes) > len(shape):
        raise ConfigError(f"no sharding rule for {name!r} of shape {shape}; add one to RULES")
    axes = (None,) * (len(shape) - len(axes)) + axes
    for size, along in zip(shape, axes, strict=True):
        ways = meshes.ways(mesh, along)
        if size % ways:
            legal = [n for n in range(1, 2 * ways) if size % n == 0]
            nearest = min(legal, key=lambda n: abs(n - ways))
            product = " x ".join(f"mesh.{axis}" for axis in meshes.names(along))
            raise ConfigError(
                f"{product}={ways} does not divide {size}, a dimension of {name} {shape}; the "
                f"nearest {product} that does is {nearest}"
            )
    return PartitionSpec(*axes)


def largest_axis(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Splits the largest axis that divides over fsdp; a parameter without one lies whole."""
    divides = [size if size % mesh.shape["fsdp"] == 0 else 0 for size in shape]
    axes: list[str | None] = [None] * len(shape)
    if max(divides, default=0):
        axes[divides.index(max(divides))] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Returns a NamedSharding for every leaf of a train state or parameters, abstract or not."""

    def place(path, leaf):
        return NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)
