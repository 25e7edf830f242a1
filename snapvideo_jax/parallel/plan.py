"""What a configuration costs, known before anything is allocated or booked.

`count` needs shapes alone. `compiled` gives the very step that training runs to the TPU's compiler,
for a slice of TPUs that nobody needs to have.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.parallel import cost, hlo, topology

# Ids of a text encoder that is trained along; its table is small beside everything else.
VOCABULARY = 256


class Count(NamedTuple):
    """parameters: of the network alone. forward_flops_per_video: of one evaluation of it."""

    parameters: int
    forward_flops_per_video: int


def count(config: Config) -> Count:
    """The network's size and work, from shapes alone; a text encoder is not counted."""
    denoiser, batch = build.denoiser(config, vocabulary_size=1), build.blank_batch
    params = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), batch(config)))
    inputs = jax.eval_shape(lambda params: denoiser.inputs(params, batch(config)), params)
    work = cost.flops(denoiser.F, params, *inputs)
    return Count(cost.parameters(params["network"]), work)


class Memory(NamedTuple):
    """Bytes on one chip: what it has, what the program needs, and parts of that.

    Beside the parts, the total holds the program itself and what it makes anew.
    """

    limit: int
    total: int
    parameters: int
    moments: int
    ema: int
    batch: int
    temporaries: int  # activations, gradients, gathered parameters; 0 if it does not fit


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A training step compiled for a slice."""

    fits: bool
    chips: int
    chip: str
    parameters: int
    memory: Memory
    collectives: Sequence[hlo.Collective]
    compile_seconds: float


def compiled(config: Config, chips: Sequence[jax.Device]) -> Verdict:
    """The training step of `config` on `chips`, which may be a topology's.

    Raises what the compiler raises for other reasons than memory.
    """
    program = build.program(config, VOCABULARY, chips)
    parts = _parts(program)
    start, text = time.monotonic(), ""
    try:
        made = topology.compiled(program.step.lower(program.abstract_state, program.abstract_batch))
        needs: Any = made.memory_analysis()
        fits, temporaries = True, needs.temp_size_in_bytes
        total = needs.argument_size_in_bytes + temporaries + needs.generated_code_size_in_bytes
        total += needs.output_size_in_bytes - needs.alias_size_in_bytes  # the rest is given away
        text = made.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fits, temporaries = False, 0
        total, _ = topology.exceeded(str(error))
    seconds = time.monotonic() - start
    memory = Memory(topology.memory(chips[0]), total, **parts, temporaries=temporaries)
    return Verdict(
        fits,
        len(chips),
        chips[0].device_kind,
        cost.parameters(program.abstract_state.params),
        memory,
        hlo.collectives(text) if text else (),
        seconds,
    )


def _parts(program: build.Program) -> dict[str, int]:
    """Bytes of a chip's share of what a step is given."""
    state = program.abstract_state
    trees = state.params, state.opt_state, state.ema, program.abstract_batch
    return dict(zip(("parameters", "moments", "ema", "batch"), map(_share, trees), strict=True))


def _share(tree: Any) -> int:
    """Bytes that one chip holds of the abstract arrays of `tree`."""
    return sum(
        leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(tree)
    )
