"""Rows of a benchmark for TPUs that are not there, by their compiler (parallel/plan.py)."""

from collections.abc import Sequence
from pathlib import Path

import jax

from snapvideo_jax import build
from snapvideo_jax.benchmark import machine
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.build import Config
from snapvideo_jax.parallel import plan, programs


def row(name: str, config: Config, mode: str, slice: Sequence[jax.Device], kept: Path) -> Row:
    """The prediction for one configuration; without times if it does not fit.

    config: has the batch of all chips together. kept: folder of what the compiler said before.
    """
    if mode == "train":
        program = programs.program(config, "train", slice)
    else:
        program = programs.evaluation(config, slice)
    verdict = plan.compiled(program, slice, kept)
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
