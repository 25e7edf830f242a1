"""Rows of a benchmark for TPUs that are not there, by their compiler (parallel/plan.py)."""

from pathlib import Path

from snapvideo_jax import build
from snapvideo_jax.benchmark import machine
from snapvideo_jax.benchmark.programs import Case
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.planner import estimate, programs


def row(case: Case, kept: Path) -> Row:
    """The prediction for one case; without times if it does not fit.

    kept: folder of what the compiler said before.
    """
    name, config, mode, devices = case
    if mode == "train":
        program = programs.program(config, "train", devices)
    else:
        program = programs.evaluation(config, devices)
    verdict = estimate.estimate(program, devices, kept)
    seconds = verdict.seconds
    return Row(
        config=name,
        network=config.model.name,
        video=build.padded_video(config),
        mode=mode,
        kind="predicted",
        device=verdict.chip,
        devices=verdict.chips,
        mesh=verdict.mesh,
        dtype=config.model.dtype,
        batch=config.training.batch_size,
        step_ms=() if seconds is None else (1e3 * seconds.slow,),
        fast_ms=None if seconds is None else 1e3 * seconds.fast,
        model_flops=verdict.model_flops,
        hardware_flops=verdict.flops,
        peak_flops=machine.peak_flops(verdict.chip, config.model.dtype),
        peak_memory_bytes=verdict.total,
        memory_source="compiler",
        compile_seconds=verdict.compile_seconds,
    )
