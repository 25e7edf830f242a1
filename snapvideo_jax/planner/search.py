"""Which mesh, remat, micro-batch and dtype train fastest on a slice.

Most are ruled out or ranked by closed forms, and the first few of the rest are compiled. The closed
forms know what each axis of the mesh sends and what each policy of remat keeps, and take exchanges
to run beside the work; they rank, and the compiler judges.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.remat import REMAT
from snapvideo_jax.parallel import chips
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel.chips import Chip
from snapvideo_jax.planner import cost, doctor, programs, residuals, topology

EFFICIENCY = 0.5  # of the peak that products reach; the same for all candidates, so it ranks none


class Candidate(NamedTuple):
    """A way to lay out training. dtype: of products. memory: bytes a chip; seconds: of a step, of
    which exchanges take `sending`, beside the work; all by closed forms.
    """

    mesh: dict[str, int]
    remat: str
    dtype: str
    accumulate: int
    memory: int
    seconds: float
    sending: float

    def apply(self, config: Config) -> Config:
        """The config with it."""
        changed = copy.deepcopy(config)
        changed.mesh.update(self.mesh)
        changed.model.update(remat=self.remat, dtype=self.dtype)
        changed.training.accumulate = self.accumulate
        return changed

    def is_of(self, config: Config) -> bool:
        """Whether the config is laid out like this."""
        return self.apply(config) == config


class Profile(NamedTuple):
    """What a policy of remat costs a video in one dtype. kept: bytes of all that is stored for the
    backward pass; passing: bytes of one block's work, while it is made again; flops: of a step.
    """

    kept: float
    passing: float
    flops: float


def candidates(config: Config, slice: Sequence[jax.Device]) -> list[Candidate]:
    """All that divide and should fit, the fastest first; ConfigError if there are none.

    Nothing is compiled; the step is traced once for each policy of remat and dtype.
    """
    chip, limit = chips.tpu(slice[0].device_kind), topology.memory(slice[0])
    mesh = build.counting_mesh()
    denoiser = build.denoiser(config, programs.VOCABULARY, mesh)
    params = build.abstract_params(config, denoiser, mesh)
    per_video = profiles(config, slice[0])
    made = [
        Candidate(sizes, remat, dtype, accumulate, *estimated)
        for sizes, accumulate in layouts(config, len(slice))
        if not doctor.examine(
            denoiser, params, sizes, len(slice), config.training.batch_size, accumulate
        ).problems
        for (remat, dtype), costs in per_video.items()
        for estimated in [estimate(config, chip, params, sizes, accumulate, dtype, costs)]
        if estimated.memory < limit
    ]
    if not made:
        raise ConfigError(
            f"no mesh of {len(slice)} x {chip.name} should hold this training step; take a larger "
            "slice or a smaller training.batch_size"
        )
    rank = lambda each: (each.seconds, each.sending, each.accumulate)
    return sorted(made, key=rank)


def roomier(
    found: Sequence[Candidate], config: Config, needed: int, limit: float
) -> list[Candidate]:
    """Those of `found` that should fit a chip where the config does not, as its compiler says.

    needed: bytes a chip, by the compiler. What the closed forms miss of them, they are taken to
    miss of the others too. limit: bytes a chip that they may fill.
    """
    refused = next((each.memory for each in found if each.is_of(config)), needed)
    return [each for each in found if each.memory * needed / refused < limit]


def layouts(config: Config, num_chips: int) -> Iterator[tuple[dict[str, int], int]]:
    """(sizes of the mesh, accumulate): powers of two, of chips and of videos at a time.

    Groups where patches are many; tensor for FIT alone, since what a U-Net's convolutions send
    under it no closed form here says.
    """
    powers = lambda most: [2**i for i in range(most.bit_length())]
    fit, ways = config.model.name == "fit", powers(num_chips)
    grouped = ways if fit and config.data.low_res else [1]
    for fsdp, group, tensor in itertools.product(ways, grouped, ways if fit else [1]):
        data = num_chips // (fsdp * group * tensor)
        if data * fsdp * group * tensor != num_chips:
            continue
        rows = config.training.batch_size // (data * fsdp)
        for micro in powers(rows):  # videos of one device at a time
            if rows % micro == 0:
                sizes = {"data": data, "fsdp": fsdp, "group": group, "tensor": tensor}
                yield sizes, rows // micro


def profiles(config: Config, chip: jax.Device) -> dict[tuple[str, str], Profile]:
    """Of each policy of remat and each dtype, traced for one video on one chip.

    But for "offload": of the way to the host's memory nothing is known here.
    """
    one = copy.deepcopy(config)
    one.mesh.update(data=1, fsdp=1, group=1, tensor=1)
    one.training.update(batch_size=1, accumulate=1)
    known = [remat for remat in REMAT if remat != "offload"]
    kept, flops = {}, {}
    for remat, dtype in itertools.product(known, build.DTYPES):
        one.model.update(remat=remat, dtype=dtype)
        made = build.train_program(one, programs.VOCABULARY, [chip])
        given = made.abstract_state, made.abstract_batch
        kept[remat, dtype] = residuals.total(made.step, given, 1)
        flops[remat, dtype] = cost.flops(made.step, *given)
    fit, unet = config.model.fit, config.model.unet
    blocks = fit.blocks if config.model.name == "fit" else 2 * len(unet.multipliers)
    passing = lambda remat, dtype: 0 if remat == "none" else kept["none", dtype] / blocks
    return {how: Profile(kept[how], passing(*how), flops[how]) for how in kept}


class Estimate(NamedTuple):
    """Of a candidate."""

    memory: int
    seconds: float
    sending: float


def estimate(
    config: Config,
    chip: Chip,
    params: Any,
    sizes: dict[str, int],
    accumulate: int,
    dtype: str,
    per_video: Profile,
) -> Estimate:
    """Memory and time by closed forms."""
    data, fsdp, group, tensor = (sizes[axis] for axis in meshes.AXES)
    numbers, split = cost.parameters(params), fsdp * group
    videos = config.training.batch_size / (data * fsdp)
    micro, width = videos / accumulate, jnp.dtype(dtype).itemsize
    held = 4 * sum(doctor.COPIES.values()) + (width if width < 4 else 0)  # `Denoiser.cast_kernels`
    # Half of what is kept belongs to heads and hidden units, which tensor splits.
    share = (1 + 1 / tensor) / 2 / group
    memory = held * numbers / (split * tensor) + micro * share * (
        per_video.kept + per_video.passing
    )
    flops = per_video.flops * config.training.batch_size
    work = flops / (math.prod(sizes.values()) * chip.peak * EFFICIENCY)
    moved = 2 * videos * share * per_video.kept / chip.hbm  # written, then read
    sending = sum(exchanges(config, chip, numbers, sizes, accumulate, width).values())
    return Estimate(int(memory), max(work + moved, sending), sending)


def patch_tokens(config: Config) -> int:
    """N of a FIT."""
    frames, height, width = build.padded_video(config)
    return frames * height * width // config.model.fit.patch**2


def exchanges(
    config: Config,
    chip: Chip,
    numbers: int,
    sizes: dict[str, int],
    accumulate: int,
    width: int,
) -> dict[str, float]:
    """Seconds that a step spends on what each axis of the mesh sends, one after the other.

    width: bytes of a number. Gradients are summed after each micro-batch: over plain fsdp into the
    parts that devices keep; else each gets the sum first, which is as much again.
    """
    data, fsdp, group, tensor = (sizes[axis] for axis in meshes.AXES)
    split, micro = fsdp * group, config.training.batch_size / (data * fsdp) / accumulate
    passes = 3 if config.model.name == "fit" else 2  # self-conditioning's, forward, backward
    ring = lambda n: (n - 1) / n
    kernels = accumulate * width * numbers / tensor
    sums = 1 if data * group == 1 else 2
    gathered = (passes + sums) * kernels * ring(split) / chip.link
    replicas = 2 * kernels / split * ring(data) / chip.link
    fit = config.model.fit
    whole = accumulate * micro * width  # bytes of a number of all videos of a device
    rows = fit.blocks * whole * fit.latents * fit.latent_channels / group
    latents = (fit.global_layers + 2) * rows  # that attention and feed-forwards give back
    patches = fit.blocks * whole * patch_tokens(config) * fit.patch_channels / group
    heads = 2 * 2 * passes * (latents + patches) * ring(tensor) / chip.link
    latents = 4 * passes * fit.global_layers * rows / tensor * group / 4 / chip.link
    latents = latents if group > 1 else 0.0
    if config.model.name != "fit":
        heads = latents = 0.0
    return {"fsdp": gathered, "data": replicas, "tensor": heads, "group": latents}


def shortlist(found: Sequence[Candidate], num_chips: int, number: int) -> list[Candidate]:
    """What to compile: the best of each of the `number` best meshes, and of plain fsdp."""
    best: dict[tuple, Candidate] = {}
    for candidate in found:
        best.setdefault(tuple(candidate.mesh.values()), candidate)
    plain = best.get((1, num_chips, 1, 1))
    chosen = list(best.values())[:number]
    return chosen if plain is None or plain in chosen else [*chosen, plain]


def is_plain(candidate: Candidate) -> bool:
    """Whether its mesh is fsdp alone."""
    return all(size == 1 for axis, size in candidate.mesh.items() if axis != "fsdp")
