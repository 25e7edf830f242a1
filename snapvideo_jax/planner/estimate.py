"""What a configuration costs, known before anything is allocated or booked.

`count` needs shapes alone. `estimate` gives the very programs that run to the compiler of the chips
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
from snapvideo_jax.planner.compiler import CompilerReport
from snapvideo_jax.planner.programs import PlannedProgram
from snapvideo_jax.planner.residuals import Buffer


class Count(NamedTuple):
    """parameters: of the network alone. forward_flops_per_video: of one call of it."""

    parameters: int
    forward_flops_per_video: int


def count(config: Config) -> Count:
    """Counts the network's size and work from shapes alone; a text encoder is not counted."""
    denoiser, params = build.abstract_model(config, vocabulary_size=1)
    inputs = jax.eval_shape(lambda p: denoiser.inputs(p, build.blank_batch(config)), params)
    flops = cost.flops(denoiser.F, params, *inputs)
    return Count(cost.parameters(params["network"]), flops)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is known of a program on a slice. Bytes are of one chip, FLOPs of all chips.

    limit: bytes that a program may use. total: bytes that this one needs. memory: parts of `total`
    by name; "activations" is what temporaries hold beside gradients. seconds: of one call; None
    where the program does not fit. residuals: of a training step that does not fit, large first.
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
    residuals: Sequence[Buffer] = ()

    @property
    def mfu(self) -> float | None:
        """Model FLOPs a second over the peak, at the slow end of the prediction."""
        return None if self.seconds is None else self.mfu_in(self.seconds.slow)

    def mfu_in(self, seconds: float) -> float:
        """Returns the MFU of a call that takes so many seconds."""
        return self.model_flops / self.chips / chips.tpu(self.chip).peak / seconds

    @property
    def videos_per_second(self) -> float | None:
        """Videos trained on, or sampled to the end, by all chips at the slow end."""
        return None if self.seconds is None else self.videos / self.calls / self.seconds.slow


def estimate(
    program: PlannedProgram, slice: Sequence[jax.Device], cache: Path | None = None
) -> Estimate:
    """Compiles `program` for the chips of a slice, which may be a topology's, and predicts from it.

    cache: folder of earlier compiler reports; the same program is compiled a single time. Raises
    what the compiler raises for other reasons than memory.
    """
    lowered = program.call.lower(*program.arguments)
    report = compiler.compile_or_load(
        lowered, program.mesh, version=topology.version(), cache=cache
    )
    arguments = program.device_bytes
    flops = program.flops
    collectives = hlo.collectives(report.text) if report.fits else []
    seconds = None
    if report.fits:
        chip = chips.tpu(slice[0].device_kind)
        seconds = predict.seconds(
            chip,
            instructions=hlo.instructions(report.text),
            kernels=cost.kernels(program.call, chip.side, *program.arguments, trips=1),
            collectives=collectives,
            num_chips=len(slice),
            flops=flops,
            least_bytes=sum(arguments.values()),
        )
    return Estimate(
        fits=report.fits,
        chips=len(slice),
        chip=slice[0].device_kind,
        mesh=dict(program.mesh.shape),
        parameters=cost.parameters(program.resident["parameters"]),
        limit=topology.memory(slice[0]),
        total=report.total,
        memory=arguments | _temporaries(program, report),
        model_flops=program.model_flops,
        flops=flops,
        videos=program.videos,
        calls=program.calls,
        collectives=collectives,
        seconds=seconds,
        compile_seconds=report.seconds,
        residuals=() if report.fits else _residuals(program),
    )


def _temporaries(program: PlannedProgram, report: CompilerReport) -> dict[str, int]:
    """Splits the compiler's temporaries into gradients, by their shapes, and the rest."""
    if not report.fits:
        return {}
    gradients = min(trees.device_bytes(program.gradients), report.temporaries)
    return {"gradients": gradients, "activations": report.temporaries - gradients}


def _residuals(program: PlannedProgram) -> list[Buffer]:
    """Lists the residuals of a training step; a sampler has none."""
    if program.gradients is None:
        return []
    ways = meshes.ways(program.mesh, (*meshes.BATCH_AXES, "group"))
    return residuals.buffers(program.call, program.arguments, ways)
