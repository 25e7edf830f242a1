"""The residuals of a training step: what its backward pass reads of its forward pass.

They are most of what fills a chip's memory beside the state, and the trace shows them in seconds,
before any compiler. Each is named by the module that computes it, in the words of the paper.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

# Parts of a module's path, in plain words.
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
    """The residuals of one part of the network. size: bytes of one device."""

    name: str
    size: int


def buffers(call: Callable, arguments: tuple, ways: int) -> list[Buffer]:
    """Lists the residuals of a jitted training step, large first; nothing is run.

    ways: devices that share out examples and groups; each is taken to hold an equal part of every
    array.
    """
    sizes: dict[str, int] = defaultdict(int)
    for path, size in _residuals(call.trace(*arguments).jaxpr.jaxpr):
        sizes[words(path)] += size // ways
    by_size = sorted(sizes.items(), key=lambda item: -item[1])
    return [Buffer(name, size) for name, size in by_size]


def total(call: Callable, arguments: tuple, ways: int) -> int:
    """Sums the bytes of one device's residuals."""
    return sum(buffer.size for buffer in buffers(call, arguments, ways))


def refusal(call: Callable, arguments: tuple, ways: int) -> str:
    """Says in a line what filled the memory of a training step that ran out, and what helps."""
    largest = buffers(call, arguments, ways)[:3]
    parts = "; ".join(f"{buffer.name}: {buffer.size / 1e9:.2g} GB" for buffer in largest)
    return (
        "the devices' memory does not hold a training step; most of what it keeps for the backward "
        f"pass, a device: {parts}. Raise training.accumulate, set model.remat=block or split the "
        "state over more devices (mesh.fsdp); launch.plan --topology says what would fit"
    )


def words(path: str) -> str:
    """Returns blocks/global1/feed_forward/up as "global layer 1, feed-forward, hidden units"."""
    names = []
    for part in path.split("/"):
        for pattern, word in WORDS:
            if re.search(pattern, part):
                names.append(re.sub(pattern, word, part))
                break
    return ", ".join(dict.fromkeys(names)) or "stem, head and the rest"


def _residuals(jaxpr: Jaxpr) -> Iterator[tuple[str, int]]:
    """Yields (path of the module, bytes) of each array that the backward pass reads.

    Both passes are in one jaxpr, that of the step or of its loop over micro-batches.
    """
    backward = [equation for equation in jaxpr.eqns if "transpose(" in _scope(equation)]
    if not backward:
        for equation in jaxpr.eqns:
            for inner in jaxprs_in_params(equation.params):
                yield from _residuals(inner)
        return
    makers = {
        variable: (equation, place)
        for equation in jaxpr.eqns
        if "transpose(" not in _scope(equation) and "jvp(" in _scope(equation)
        for place, variable in enumerate(equation.outvars)
    }
    inputs = {v for equation in backward for v in equation.invars if not isinstance(v, Literal)}
    for variable in inputs & makers.keys():
        equation, place = makers[variable]
        yield _module(equation, place), _bytes(variable)


def _module(equation: JaxprEqn, place: int) -> str:
    """Returns the path of the module behind a residual; of a stack, the one inside the loop."""
    if equation.primitive.name == "scan":
        body = equation.params["jaxpr"].jaxpr
        makers = {variable: inner for inner in body.eqns for variable in inner.outvars}
        maker = makers.get(body.outvars[place])
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
