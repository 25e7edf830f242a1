"""What is timed: training's own step, and the one evaluation of the network that samplers make."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.planner import compiler, cost

MODES = ("train", "infer")
VOCABULARY = 256  # ids of a text encoder that is trained along; its table is small


class Case(NamedTuple):
    """One program to time: `config` has the batch size of all `devices` together."""

    name: str
    config: Config
    mode: str
    devices: Sequence[jax.Device]


class Work(NamedTuple):
    """What a mode runs: `call(*arguments)`, arguments as `abstract` says and `start()` makes them.

    carry(arguments, results) -> the arguments of the next step.
    """

    call: Any
    abstract: tuple
    start: Callable[[], tuple]
    carry: Callable[[tuple, Any], tuple]
    mesh: dict[str, int]


class Compiled(NamedTuple):
    """A case and its program; `program` is None where compiling ran out of memory."""

    case: Case
    work: Work
    program: Any
    seconds: float | None
    memory: int | None  # bytes of one device


def described(case: Case) -> str:
    """As lines on the screen name it."""
    videos, devices = case.config.training.batch_size, len(case.devices)
    plural = lambda number, noun: f"{number} {noun}{'s' if number > 1 else ''}"
    return f"{case.name} {case.mode}, {plural(videos, 'video')} on {plural(devices, 'device')}"


def compiled(case: Case) -> Compiled:
    """Traces and compiles a case; without a program if that runs out of memory."""
    made, start = work(case), time.monotonic()
    try:
        program = made.call.lower(*made.abstract).compile()
    except jax.errors.JaxRuntimeError as error:
        if not compiler.exhausted(error):
            raise
        return Compiled(case, made, None, None, None)
    seconds = time.monotonic() - start
    needs = program.memory_analysis()  # None where a backend says nothing
    return Compiled(case, made, program, seconds, needs and compiler.total_bytes(needs))


def work(case: Case) -> Work:
    """What the mode of a case runs, not yet compiled."""
    if case.mode == "infer":
        made = build.evaluation(case.config, VOCABULARY, case.devices)
        params, inputs = made.abstract
        start = lambda: (made.init(), *filled(inputs))
        same = lambda arguments, results: arguments
        return Work(made.call, (params, *inputs), start, same, dict(made.mesh.shape))
    program = build.program(case.config, VOCABULARY, case.devices)
    batch = program.abstract_batch
    start = lambda: (program.init(), filled(batch))
    carry = lambda arguments, results: (results[0], arguments[1])  # the old state was given away
    given = program.abstract_state, batch
    return Work(program.step, given, start, carry, dict(program.mesh.shape))


def filled(abstract: Any) -> Any:
    """Random arrays as `abstract` says: no chip multiplies them faster, as some do zeros.

    Fractions and pixels are uniform, other whole numbers 1, and nothing is masked.
    """

    leaves, structure = jax.tree.flatten(abstract)
    made = [
        _maker(leaf.shape, leaf.dtype, leaf.sharding)(number) for number, leaf in enumerate(leaves)
    ]
    return structure.unflatten(made)


@functools.cache
def _maker(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[int], jax.Array]:
    """Of arrays of one kind, by number; compiled once for all leaves that are alike."""

    def make(number: Array) -> Array:
        key = jax.random.key(number)
        if jnp.issubdtype(dtype, jnp.floating):
            return jax.random.uniform(key, shape, dtype)
        if dtype == jnp.uint8:
            return jax.random.bits(key, shape, dtype)
        return jnp.ones(shape, dtype)

    return jax.jit(make, out_shardings=sharding)


def flops(case: Case, made: Work) -> tuple[int, int]:
    """(model, hardware) FLOPs of a step: without and with what is computed again."""
    config, devices = build.once(case.config, case.devices)
    plain = work(case._replace(config=config, devices=devices))
    return cost.flops(plain.call, *plain.abstract), cost.flops(made.call, *made.abstract)
