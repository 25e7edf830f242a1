"""Which mesh, remat, micro-batch and dtype train fastest on a slice.

Closed forms rule most out and rank the rest, of which the first few are compiled. The closed forms
know what each axis of the mesh sends and how large the residuals of each policy of remat are, and
take exchanges to overlap with the work; they rank, and the compiler judges.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    """A way to lay out training, with its ClosedForm.

    dtype: of products. memory: bytes a chip. seconds: of a step. exchange_seconds: of its
    exchanges, which overlap with the work.
    """

    mesh: dict[str, int]
    remat: str
    dtype: str
    accumulate: int
    memory: int
    seconds: float
    exchange_seconds: float

    def apply(self, config: Config) -> Config:
        """Returns a copy of the config that is laid out like this."""
        changed = copy.deepcopy(config)
        changed.mesh.update(self.mesh)
        changed.model.update(remat=self.remat, dtype=self.dtype)
        changed.training.accumulate = self.accumulate
        return changed

    def matches(self, config: Config) -> bool:
        """Returns whether the config is laid out like this."""
        return self.apply(config) == config


class Profile(NamedTuple):
    """What a policy of remat costs a video in one dtype.

    residuals: bytes that stay for the backward pass. block: bytes of one block's work, while the
    backward pass computes it again. flops: of a step.
    """

    residuals: float
    block: float
    flops: float


def candidates(config: Config, slice: Sequence[jax.Device]) -> list[Candidate]:
    """Lists the layouts that divide and should fit, the fastest first.

    Nothing is compiled; the step is traced a single time for each policy of remat and dtype. Raises
    ConfigError if there are none.
    """
    chip, limit = chips.tpu(slice[0].device_kind), topology.memory(slice[0])
    denoiser, params = build.abstract_model(config, programs.VOCABULARY)
    per_video = profiles(config, slice[0])
    layouts_that_fit = []
    for sizes, accumulate in layouts(config, len(slice)):
        diagnosis = doctor.examine(
            denoiser,
            params,
            sizes=sizes,
            num_devices=len(slice),
            batch_size=config.training.batch_size,
            accumulate=accumulate,
        )
        if diagnosis.problems:
            continue
        for (remat, dtype), profile in per_video.items():
            form = closed_form(
                config,
                chip,
                num_parameters=cost.parameters(params),
                sizes=sizes,
                accumulate=accumulate,
                dtype=dtype,
                per_video=profile,
            )
            if form.memory < limit:
                layouts_that_fit.append(
                    Candidate(
                        mesh=sizes,
                        remat=remat,
                        dtype=dtype,
                        accumulate=accumulate,
                        **form._asdict(),
                    )
                )
    if not layouts_that_fit:
        raise ConfigError(
            f"no mesh of {len(slice)} x {chip.name} should hold this training step; take a larger "
            "slice or a smaller training.batch_size"
        )
    rank = lambda layout: (layout.seconds, layout.exchange_seconds, layout.accumulate)
    return sorted(layouts_that_fit, key=rank)


def below_limit(
    ranking: Sequence[Candidate], config: Config, total: int, limit: float
) -> list[Candidate]:
    """Returns the layouts that should fit a chip, where the compiler refused that of the config.

    total: bytes a chip that the config's layout needs, by the compiler. What the closed form misses
    of it, it is taken to miss of the other layouts too. limit: bytes a chip that they may fill.
    """
    closed_form = next((each.memory for each in ranking if each.matches(config)), total)
    return [each for each in ranking if each.memory * total / closed_form < limit]


def layouts(config: Config, num_chips: int) -> Iterator[tuple[dict[str, int], int]]:
    """Yields (sizes of the mesh, accumulate): powers of two, of chips and of videos at a time.

    The axis `group` is used where patches are many. Neither it nor `tensor` is used for a U-Net:
    no closed form here says what its convolutions send under them.
    """
    powers = lambda most: [2**i for i in range(most.bit_length())]
    transformer, ways = config.model.name != "unet", powers(num_chips)
    group_ways = ways if transformer and config.data.low_res else [1]
    tensor_ways = ways if transformer else [1]
    for fsdp, group, tensor in itertools.product(ways, group_ways, tensor_ways):
        data = num_chips // (fsdp * group * tensor)
        if data * fsdp * group * tensor != num_chips:
            continue
        rows = config.training.batch_size // (data * fsdp)
        for micro in powers(rows):  # videos of one device at a time
            if rows % micro == 0:
                sizes = {"data": data, "fsdp": fsdp, "group": group, "tensor": tensor}
                yield sizes, rows // micro


def profiles(config: Config, chip: jax.Device) -> dict[tuple[str, str], Profile]:
    """Traces each policy of remat in each dtype, for one video on one chip.

    "offload" is left out: of the way to the host's memory nothing is known here.
    """
    one = copy.deepcopy(config)
    one.mesh.update(data=1, fsdp=1, group=1, tensor=1)
    one.training.update(batch_size=1, accumulate=1)
    policies = [remat for remat in REMAT if remat != "offload"]
    sizes, flops = {}, {}
    for remat, dtype in itertools.product(policies, build.DTYPES):
        one.model.update(remat=remat, dtype=dtype)
        program = build.train_program(one, programs.VOCABULARY, [chip])
        arguments = program.abstract_state, program.abstract_batch
        sizes[remat, dtype] = residuals.total(program.step, arguments, ways=1)
        flops[remat, dtype] = cost.flops(program.step, *arguments)
    model = config.model
    blocks = {
        "fit": model.fit.blocks,
        "unet": 2 * len(model.unet.multipliers),
        "dit": model.dit.blocks,
    }[model.name]
    block = lambda remat, dtype: 0 if remat == "none" else sizes["none", dtype] / blocks
    return {
        (remat, dtype): Profile(size, block(remat, dtype), flops[remat, dtype])
        for (remat, dtype), size in sizes.items()
    }


class ClosedForm(NamedTuple):
    """What a layout costs by closed forms: bytes a chip, and seconds of a step, which at least last
    as long as its exchanges.
    """

    memory: int
    seconds: float
    exchange_seconds: float


def closed_form(
    config: Config,
    chip: Chip,
    *,
    num_parameters: int,
    sizes: dict[str, int],
    accumulate: int,
    dtype: str,
    per_video: Profile,
) -> ClosedForm:
    """Computes memory and time of a layout without tracing or compiling it."""
    data, fsdp, group, tensor = (sizes[axis] for axis in meshes.AXES)
    videos = config.training.batch_size / (data * fsdp)
    micro, width = videos / accumulate, jnp.dtype(dtype).itemsize
    copy_width = width if width < 4 else 0  # of the kernels that are cast for a step
    state = (4 * sum(doctor.COPIES.values()) + copy_width) * num_parameters
    # Half of the residuals belongs to heads and hidden units, which tensor splits.
    part = (1 + 1 / tensor) / 2 / group
    activations = micro * part * (per_video.residuals + per_video.block)
    memory = state / (fsdp * group * tensor) + activations
    flops = per_video.flops * config.training.batch_size
    work = flops / (math.prod(sizes.values()) * chip.peak * EFFICIENCY)
    traffic = 2 * videos * part * per_video.residuals / chip.hbm  # written, then read
    by_axis = exchanges(
        config,
        chip,
        num_parameters=num_parameters,
        sizes=sizes,
        accumulate=accumulate,
        width=width,
    )
    exchange_seconds = sum(by_axis.values())
    return ClosedForm(
        memory=int(memory),
        seconds=max(work + traffic, exchange_seconds),
        exchange_seconds=exchange_seconds,
    )


class Rows(NamedTuple):
    """Numbers of one video whose rows devices exchange in one pass through a network.

    summed: results of layers, summed over `tensor`. exchanged: what the devices of `group` exchange
    so that tokens attend to tokens that lie elsewhere.
    """

    summed: int
    exchanged: int


def rows(config: Config) -> Rows:
    """Returns the numbers that the network of a config sums and exchanges, 0 of a U-Net."""
    model, (frames, height, width) = config.model, build.padded_video(config)
    if model.name == "unet":
        return Rows(summed=0, exchanged=0)
    if model.name == "fit":
        fit = model.fit
        latents = fit.blocks * fit.latents * fit.latent_channels
        patches = fit.blocks * frames * height * width // fit.patch**2 * fit.patch_channels
        # Attention and feed-forward of each layer; queries, keys, values and results.
        summed = 2 * ((fit.global_layers + 2) * latents + patches)
        return Rows(summed=summed, exchanged=4 * fit.global_layers * latents)
    dit = model.dit
    patches = dit.blocks * frames * height * width // dit.patch**2 * dit.channels
    # Results of each layer; queries, keys, values and results, or all tokens before and after time.
    summed, exchanged = (4, 2) if dit.factorised else (3, 4)
    return Rows(summed=summed * patches, exchanged=exchanged * patches)


def exchanges(
    config: Config,
    chip: Chip,
    *,
    num_parameters: int,
    sizes: dict[str, int],
    accumulate: int,
    width: int,
) -> dict[str, float]:
    """Returns the seconds of a step's exchanges along each axis of the mesh.

    width: bytes of a number. Gradients are summed after each micro-batch: over plain fsdp into the
    parts that devices keep; else each gets the sum first, which is as much again.
    """
    data, fsdp, group, tensor = (sizes[axis] for axis in meshes.AXES)
    split, micro = fsdp * group, config.training.batch_size / (data * fsdp) / accumulate
    passes = 3 if config.model.name == "fit" else 2  # self-conditioning's, forward, backward
    ring = lambda n: (n - 1) / n
    kernels = accumulate * width * num_parameters / tensor
    sums = 1 if data * group == 1 else 2
    gathers = (passes + sums) * kernels * ring(split) / chip.link
    replicas = 2 * kernels / split * ring(data) / chip.link
    of_all = passes * accumulate * micro * width / group  # bytes of one number of a device's videos
    numbers = rows(config)
    heads = 2 * of_all * numbers.summed * ring(tensor) / chip.link
    tokens = of_all * numbers.exchanged / tensor * group / 4 / chip.link if group > 1 else 0.0
    return {"fsdp": gathers, "data": replicas, "tensor": heads, "group": tokens}


def shortlist(ranking: Sequence[Candidate], num_chips: int, number: int) -> list[Candidate]:
    """Returns what to compile: the best layout of each of the `number` best meshes and of fsdp."""
    best: dict[tuple, Candidate] = {}
    for candidate in ranking:
        best.setdefault(tuple(candidate.mesh.values()), candidate)
    plain = best.get((1, num_chips, 1, 1))
    first = list(best.values())[:number]
    return first if plain is None or plain in first else [*first, plain]


def is_plain(candidate: Candidate) -> bool:
    """Returns whether the mesh is fsdp alone."""
    return all(size == 1 for axis, size in candidate.mesh.items() if axis != "fsdp")
