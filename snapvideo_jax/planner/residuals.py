"""What a training step keeps of its forward pass for the backward pass, read from its trace.

This is most of what fills a chip's memory beside the state, and it is known in seconds, before any
compiler: every array that the forward pass makes and the backward pass reads. Each is named by the
module that makes it, in the words of the paper.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

# Parts of a path, in the words of people.
WORDS = (
    (r"^attend_conditioning$", "latents' attention to the conditioning"),
    (r"^read$", "read (latents' attention to patches)"),
    (r"^write$", "write (patches' attention to latents)"),
    (r"^global(\d+)$", r"global layer \1"),
    (r"^(en|de)coder(\d+)_(\d+)$", r"\1coder, level \2, block \3"),
    (r"^(en|de)coder(\d+)_(\w+)$", r"\1coder, level \2, \3"),
    (r"^feed_forward$", "feed-forward"),
    (r"^(up|down)$", "hidden units"),
    (r"^[qkvo]$", "queries, keys, values and results"),
    (r"^(\w*)norm$", "norm"),
)


class Buffer(NamedTuple):
    """Arrays that one part of the network keeps. size: bytes of one device."""

    what: str
    size: int


def buffers(call: Callable, arguments: tuple, split: int) -> list[Buffer]:
    """All that is kept, large first, of a jitted training step, of which nothing is run.

    split: devices that share out examples and groups; an array is counted as if shared by all of
    them evenly.
    """
    sizes: dict[str, int] = defaultdict(int)
    for path, size in _kept(call.trace(*arguments).jaxpr.jaxpr):
        sizes[words(path)] += size // split
    return sorted((Buffer(*each) for each in sizes.items()), key=lambda each: -each.size)


def total(call: Callable, arguments: tuple, split: int) -> int:
    """Bytes of one device in all."""
    return sum(each.size for each in buffers(call, arguments, split))


def refusal(call: Callable, arguments: tuple, split: int) -> str:
    """One line for a training step that has run out of a device's memory, with what to do."""
    largest = buffers(call, arguments, split)[:3]
    named = "; ".join(f"{each.what}: {each.size / 1e9:.2g} GB" for each in largest)
    return (
        "the devices' memory does not hold a training step; most of what it keeps for the backward "
        f"pass, a device: {named}. Raise training.accumulate, set model.remat=block or split the "
        "state over more devices (mesh.fsdp); launch.plan --topology says what would fit"
    )


def words(path: str) -> str:
    """blocks/global1/feed_forward/up -> "global layer 1, feed-forward, hidden units"."""
    said = []
    for part in path.split("/"):
        for pattern, word in WORDS:
            if re.search(pattern, part):
                said.append(re.sub(pattern, word, part))
                break
    return ", ".join(dict.fromkeys(said)) or "stem, head and the rest"


def _kept(jaxpr: Jaxpr) -> Iterator[tuple[str, int]]:
    """(path of the module, bytes) of what the forward pass makes and the backward pass reads.

    Both are in one jaxpr, that of the step or of its loop over micro-batches.
    """
    backward = [equation for equation in jaxpr.eqns if "transpose(" in _scope(equation)]
    if not backward:
        for equation in jaxpr.eqns:
            for inner in jaxprs_in_params(equation.params):
                yield from _kept(inner)
        return
    makers = {
        variable: (equation, place)
        for equation in jaxpr.eqns
        if "transpose(" not in _scope(equation) and "jvp(" in _scope(equation)
        for place, variable in enumerate(equation.outvars)
    }
    read = {v for equation in backward for v in equation.invars if not isinstance(v, Literal)}
    for variable in read & makers.keys():
        equation, place = makers[variable]
        yield _module(equation, place), _bytes(variable)


def _module(equation: JaxprEqn, place: int) -> str:
    """Where a kept array comes from: of one that a loop stacks, from inside the loop."""
    name, params = equation.primitive.name, equation.params
    inside = params["jaxpr"].jaxpr if name == "scan" else None
    if inside is not None:
        made = {v: inner for inner in inside.eqns for v in inner.outvars}
        maker = made.get(inside.outvars[place])
        if maker is not None:
            return f"{_scope(equation)}/{_scope(maker)}"
    return _scope(equation)


def _scope(equation: JaxprEqn) -> str:
    return str(equation.source_info.name_stack)


def _bytes(variable: Any) -> int:
    shape, dtype = variable.aval.shape, variable.aval.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 0
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
