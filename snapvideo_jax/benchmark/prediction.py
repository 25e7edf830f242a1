"""A program's predicted time beside the measured one, on the devices at hand.

What a data sheet says of a TPU or GPU, two microbenchmarks say of any device: how fast it
multiplies large matrices, and how fast it reads and writes memory.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax.benchmark.programs import random_arrays
from snapvideo_jax.build import SamplerArguments
from snapvideo_jax.parallel import chips
from snapvideo_jax.planner.programs import PlannedProgram

ROUNDS = 3


class Rates(NamedTuple):
    """Of one device. multiply: FLOP/s; move: bytes/s, read and written. source: of both."""

    multiply: float
    move: float
    source: str


class Comparison(NamedTuple):
    """Seconds of one call. predicted: the longer of products and memory at full rate, which ignores
    everything else; measured: the median of `rounds`.
    """

    predicted: float
    measured: float
    rounds: list[float]
    rates: Rates
    compile_seconds: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1


def compare(program: PlannedProgram) -> Comparison:
    """Compiles `program` for the devices of its mesh, runs it, and predicts how long that takes."""
    devices = program.mesh.devices.flatten()
    sheet = chips.of(devices[0].device_kind)
    if sheet and program.dtype == "bfloat16":  # whose peak the sheets give
        rates = Rates(sheet.peak, sheet.hbm, "data sheet")
    else:
        rates = measured_rates(jnp.dtype(program.dtype))
    start = time.monotonic()
    call = program.call.lower(*program.arguments).compile()
    compile_seconds = time.monotonic() - start
    rounds = [_seconds(call, _arguments(program)) for _ in range(ROUNDS + 1)][1:]
    compute = program.flops / len(devices) / rates.multiply
    predicted = max(compute, sum(program.device_bytes.values()) / rates.move)
    return Comparison(
        predicted=predicted,
        measured=float(np.median(rounds)),
        rounds=rounds,
        rates=rates,
        compile_seconds=compile_seconds,
    )


def _arguments(program: PlannedProgram) -> tuple:
    """Makes random arguments; of a sampler those of its first call alone."""
    arguments = random_arrays(program.arguments)
    if isinstance(program.arguments, SamplerArguments):
        arguments = arguments._replace(first=jnp.int32(0), last=jnp.int32(1))
    return arguments


def measured_rates(dtype: jnp.dtype, side: int = 2048) -> Rates:
    """Times a product of two matrices and a copy, both large, on the first device."""
    matrix = random_arrays(_whole((side, side), dtype))
    multiply = jax.jit(lambda a, b: a @ b)
    product = min(_seconds(multiply, (matrix, matrix)) for _ in range(ROUNDS + 1))
    row = random_arrays(_whole((2**26,), jnp.dtype(jnp.float32)))
    copy = min(_seconds(jax.jit(lambda x: x + 1), (row,)) for _ in range(ROUNDS + 1))
    return Rates(2 * side**3 / product, 2 * row.nbytes / copy, "measured by microbenchmarks")


def _whole(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _seconds(call: Callable[..., Any], arguments: tuple) -> float:
    jax.block_until_ready(arguments)
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start
