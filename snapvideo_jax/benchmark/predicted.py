"""Rows of a benchmark for TPUs that are not there, by their compiler (planner/estimate.py)."""

from pathlib import Path

from snapvideo_jax.benchmark import machine, programs
from snapvideo_jax.benchmark.programs import Case
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.planner import estimate


def row(case: Case, cache: Path) -> Row:
    """Predicts one case; the row has no times if it does not fit.

    cache: folder of what the compiler said before.
    """
    program = programs.plan_case(case)
    answer = estimate.estimate(program, case.devices, cache)
    seconds = answer.seconds
    return Row(
        config=case.name,
        network=program.network,
        parameters=program.parameters,
        video=program.denoiser.network.video,
        mode=case.mode,
        kind="predicted",
        device=answer.chip,
        devices=answer.chips,
        mesh=answer.mesh,
        dtype=program.dtype,
        attention=program.attention,
        batch=program.videos,
        step_ms=() if seconds is None else (1e3 * seconds.slow,),
        fast_ms=None if seconds is None else 1e3 * seconds.fast,
        model_flops=answer.model_flops,
        hardware_flops=answer.flops,
        peak_flops=machine.peak_flops(answer.chip, program.dtype),
        peak_memory_bytes=answer.total,
        memory_source="compiler",
        compile_seconds=answer.compile_seconds,
    )
