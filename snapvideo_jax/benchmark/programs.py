"""The programs that benchmarks compile and time: a training step, one call of the network."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from snapvideo_jax.build import Config
from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import compiler, programs
from snapvideo_jax.planner.programs import PlannedProgram

MODES = {"train": "train", "infer": "network"}  # mode -> kind of program


class Case(NamedTuple):
    """One program to time: `config` has the batch size of all `devices` together."""

    name: str
    config: Config
    mode: str
    devices: Sequence[jax.Device]


class CompiledCase(NamedTuple):
    """A case and its program; `executable` is None where compiling ran out of memory."""

    case: Case
    program: PlannedProgram
    executable: Any
    seconds: float | None
    memory: int | None  # bytes of one device


def describe(case: Case) -> str:
    """Returns a case as lines on the screen name it."""
    data, devices = case.config.data, len(case.devices)
    plural = lambda number, noun: f"{number} {noun}{'s' if number > 1 else ''}"
    videos = plural(case.config.training.batch_size, "video")
    size = f"{data.num_frames} x {data.height} x {data.width}"
    return f"{case.name} {case.mode}, {videos} of {size} on {plural(devices, 'device')}"


def plan_case(case: Case) -> PlannedProgram:
    """Returns what the mode of a case runs, not yet compiled."""
    return programs.planned(case.config, MODES[case.mode], case.devices)


def compile_case(case: Case) -> CompiledCase:
    """Traces and compiles a case; returns no executable if that runs out of memory."""
    program, start = plan_case(case), time.monotonic()
    try:
        executable = program.call.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if not chips.exhausted(error):
            raise
        return CompiledCase(case, program, executable=None, seconds=None, memory=None)
    seconds = time.monotonic() - start
    analysis = executable.memory_analysis()  # None where a backend says nothing
    memory = analysis and compiler.total_bytes(analysis)
    return CompiledCase(case, program, executable=executable, seconds=seconds, memory=memory)


def first_arguments(compiled: CompiledCase) -> tuple:
    """Makes the state or the parameters, and a random batch."""
    program = compiled.program
    assert program.init is not None
    return program.init(), *random_arrays(program.arguments[1:])


def next_arguments(compiled: CompiledCase, arguments: tuple, results: Any) -> tuple:
    """Returns the arguments of the next step; a training step has taken its state's memory."""
    return (results[0], *arguments[1:]) if compiled.case.mode == "train" else arguments


def random_arrays(abstract: Any) -> Any:
    """Makes random arrays as `abstract` says: zeros are multiplied faster by some chips.

    Fractions and pixels are uniform, other whole numbers 1, and nothing is masked.
    """
    leaves, structure = jax.tree.flatten(abstract)
    arrays = [
        _draw(leaf.shape, leaf.dtype, leaf.sharding)(number) for number, leaf in enumerate(leaves)
    ]
    return structure.unflatten(arrays)


@functools.cache
def _draw(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[int], jax.Array]:
    """Returns number -> array, compiled once for all leaves of one shape, dtype and sharding."""

    def draw(number: Array) -> Array:
        key = jax.random.key(number)
        if jnp.issubdtype(dtype, jnp.floating):
            return jax.random.uniform(key, shape, dtype)
        if dtype == jnp.uint8:
            return jax.random.bits(key, shape, dtype)
        return jnp.ones(shape, dtype)

    return jax.jit(draw, out_shardings=sharding)
