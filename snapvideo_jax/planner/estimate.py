"""What a configuration costs, known before anything is allocated or booked.

`count` needs shapes alone. `compiled` gives the very programs that run to the compiler of the chips
they would run on, which nobody needs to have.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from snapvideo_jax import build, trees
from snapvideo_jax.build import Config
from snapvideo_jax.parallel import chips
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import compiler, cost, hlo, predict, residuals, topology
from snapvideo_jax.planner.programs import PlannedProgram
from snapvideo_jax.planner.residuals import Buffer


class Count(NamedTuple):
    """parameters: of the network alone. forward_flops_per_video: of one evaluation of it."""

    parameters: int
    forward_flops_per_video: int


def count(config: Config) -> Count:
    """The network's size and work, from shapes alone; a text encoder is not counted."""
    mesh = build.counting_mesh()
    denoiser = build.denoiser(config, vocabulary_size=1, mesh=mesh)
    params = build.abstract_params(config, denoiser, mesh)
    inputs = jax.eval_shape(lambda p: denoiser.inputs(p, build.blank_batch(config)), params)
    work = cost.flops(denoiser.F, params, *inputs)
    return Count(cost.parameters(params["network"]), work)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is known of a program on a slice. Bytes are of one chip, FLOPs of all together.

    memory: bytes by name; of the parts of `total`, "activations" is what temporaries hold beside
    gradients. limit: bytes that there are. seconds: None where the program does not fit. stored:
    then, what training keeps for the backward pass, large first.
    """

    fits: bool
    chips: int
    chip: str
    mesh: dict[str, int]
    parameters: int
    limit: int
    total: int
    memory: dict[str, int]
    model_flops: int
    flops: int
    videos: int
    calls: int
    collectives: Sequence[hlo.Collective]
    seconds: predict.Seconds | None
    compile_seconds: float
    stored: Sequence[Buffer] = ()

    @property
    def mfu(self) -> float | None:
        """Model FLOPs a second over the peak, at the slow end of the prediction."""
        if self.seconds is None:
            return None
        return self.model_flops / self.chips / chips.tpu(self.chip).peak / self.seconds.slow

    @property
    def videos_per_second(self) -> float | None:
        """Of all chips, at the slow end: trained on, or sampled to the end."""
        return None if self.seconds is None else self.videos / self.calls / self.seconds.slow


def compiled(
    program: PlannedProgram, slice: Sequence[jax.Device], kept: Path | None = None
) -> Verdict:
    """`program` for the chips of a slice, which may be a topology's.

    kept: folder of earlier outcomes, which are compiled once. Raises what the compiler raises for
    other reasons than memory.
    """
    lowered = program.call.lower(*program.arguments)
    said = compiler.outcome(lowered, program.mesh, topology.version(), kept)
    chip = chips.tpu(slice[0].device_kind)
    memory = program.device_bytes
    given = sum(memory.values())
    total, gradients = said.needed, trees.device_bytes(program.gradients)
    if said.fits:
        gradients = min(gradients, said.temporaries)
        memory |= {"gradients": gradients, "activations": said.temporaries - gradients}
    buffers = []
    if not said.fits and program.gradients is not None:
        split = meshes.ways(program.mesh, (*meshes.BATCH_AXES, "group"))
        buffers = residuals.buffers(program.call, program.arguments, split)
    flops = program.flops
    collectives = hlo.collectives(said.text) if said.fits else []
    seconds = None
    if said.fits:
        seconds = predict.seconds(
            chip,
            hlo.works(said.text),
            cost.kernels(program.call, chip.side, *program.arguments, trips=1),
            collectives,
            len(slice),
            flops,
            given,
        )
    return Verdict(
        fits=said.fits,
        chips=len(slice),
        chip=slice[0].device_kind,
        mesh=dict(program.mesh.shape),
        parameters=cost.parameters(program.resident["parameters"]),
        limit=topology.memory(slice[0]),
        total=total,
        memory=memory,
        model_flops=program.model_flops,
        flops=flops,
        videos=program.videos,
        calls=program.calls,
        collectives=collectives,
        seconds=seconds,
        compile_seconds=said.seconds,
        stored=buffers,
    )
