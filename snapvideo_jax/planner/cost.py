"""Parameters and FLOPs counted from abstract shapes: nothing is allocated, compiled or run.

The count is that of MFU: a multiply-add of a matrix product or a convolution is two floating point
operations, and element-wise work (norms, softmax, activations, the optimizer) is none. It is read
from the jaxpr, because the compiler's own analysis counts the body of a loop once, however often
it runs. What a rematerialized block computes again is counted again.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

# Primitives that are counted.
PRODUCTS = {"dot_general", "conv_general_dilated", "pallas_call"}

# Primitives that run the jaxpr they hold once, and those that run it in turns or choose one.
CALLS = {
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat2",
}
HOLDERS = CALLS | {"cond", "scan", "shard_map"}

# Of a kernel's body: operations that move nothing (references, shapes) and what exp costs, in
# operations of the vector units (range reduction and a polynomial; an assumption).
FREE = {"get", "swap", "addupdate", "broadcast_in_dim", "reshape", "squeeze", "program_id"}
EXP = 8


def parameters(abstract_tree: Any) -> int:
    """How many numbers the leaves of a tree hold, arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_tree))


def flops(function: Callable, *abstract_args: Any, trips: int | None = None) -> int:
    """Floating point operations of one call, over all devices together.

    Args:
        function: traced, never run; jitted, sharded, scanned or differentiated as it may be.
        abstract_args: its arguments, arrays or trees of ShapeDtypeStructs.
        trips: of loops whose trip count is only known at run time.

    Raises:
        ValueError: it holds a loop of unknown trips and `trips` is None, a Pallas kernel without a
            cost estimate, or a primitive unknown here that computes products.
    """
    return _total(_runs(_traced(function, *abstract_args), trips))


class Kernel(NamedTuple):
    """What all runs of a program's Pallas kernels of one name do, over all devices together.

    rows: of a product's left side that enter a matrix unit of the given `side`, one a cycle.
    elements: of element-wise operations, in whole registers of 8 x 128; exp counts EXP.
    """

    name: str
    runs: int
    rows: int
    elements: int


def kernels(
    function: Callable, side: int, *abstract_args: Any, trips: int | None = None
) -> list[Kernel]:
    """The kernels of one call, to which a TPU's compiler gives no cycles; read from their bodies.

    side: of the chip's matrix units; a product pays for whole tiles of side x side.
    """
    sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(3, np.int64))
    for equation, times in _runs(_traced(function, *abstract_args), trips):
        if equation.primitive.name == "pallas_call":
            params = equation.params
            steps = times * math.prod(params["grid_mapping"].grid)
            rows, elements = _body(params["jaxpr"], side)
            sums[params["name"] or "kernel"] += times, steps * rows, steps * elements
    return [Kernel(name, *numbers.tolist()) for name, numbers in sums.items()]


def _traced(function: Callable, *abstract_args: Any) -> Jaxpr:
    """Of a jitted function its own trace, since one with compiler options cannot be nested."""
    trace = getattr(function, "trace", None) or jax.jit(function).trace
    return trace(*abstract_args).jaxpr.jaxpr


def _runs(jaxpr: Jaxpr, trips: int | None, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """What is counted, and how often it runs: loops with their trips, over all devices together.

    Of the branches of a choice the one with the most FLOPs.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in PRODUCTS:
            yield equation, times
            continue
        turns = times * _turns(equation, trips)
        held = [list(_runs(inner, trips, turns)) for inner in jaxprs_in_params(equation.params)]
        known = name in HOLDERS or (name == "while" and trips is not None)
        if not known and any(held):
            raise ValueError(_refusal(name))
        yield from max(held, key=_total) if name == "cond" else itertools.chain(*held)


def _turns(equation: JaxprEqn, trips: int | None) -> int:
    """Of what a primitive holds: a loop's trips, or devices that run it on shards of their own."""
    params = equation.params
    if equation.primitive.name == "scan":
        return params["length"]
    if equation.primitive.name == "while":
        return 1 if trips is None else trips
    if equation.primitive.name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _total(runs: Iterable[tuple[JaxprEqn, int]]) -> int:
    return sum(times * _flops(equation) for equation, times in runs)


def _flops(equation: JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        return _matmul(equation)
    if equation.primitive.name == "conv_general_dilated":
        return _convolution(equation)
    return _kernel(equation.params)


def _body(jaxpr: Jaxpr, side: int) -> tuple[int, int]:
    """(rows, elements) of one step of a kernel's grid, what it does in every step."""
    rows = elements = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            rows += _tiles(equation, side)
        elif name in CALLS:
            inner = [_body(inner, side) for inner in jaxprs_in_params(equation.params)]
            rows, elements = rows + sum(r for r, _ in inner), elements + sum(e for _, e in inner)
        elif name not in FREE and name != "cond":
            shapes = map(_shape, (*equation.invars, *equation.outvars))
            largest = max(shapes, key=math.prod, default=())
            elements += (EXP if name == "exp" else 1) * _registers(largest)
    return rows, elements


def _tiles(equation: JaxprEqn, side: int) -> int:
    ((contracted, _), _) = equation.params["dimension_numbers"]
    lhs, rhs = (_shape(variable) for variable in equation.invars)
    inner = math.prod(lhs[axis] for axis in contracted)
    outer = math.prod(lhs) // inner, math.prod(rhs) // inner
    return outer[0] * math.ceil(inner / side) * math.ceil(outer[1] / side)


def _registers(shape: tuple[int, ...]) -> int:
    """Elements of an array in whole registers of 8 x 128."""
    *outer, rows, lanes = (1, 1, *shape)
    return math.prod(outer) * math.ceil(rows / 8) * 8 * math.ceil(lanes / 128) * 128


def _matmul(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(lhs[i] for i in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """Products of numbers that are there; those with padding or with a dilation's holes are none.

    So a convolution, its gradient to the input and its gradient to the kernel count the same.
    """
    lhs, rhs, out = map(_shape, (*equation.invars, *equation.outvars))
    numbers, params = equation.params["dimension_numbers"], equation.params
    (_, _, *lhs_space), (_, rhs_in, *rhs_space) = numbers.lhs_spec, numbers.rhs_spec
    out_batch, out_channel, *out_space = numbers.out_spec
    taps = (
        _taps(lhs[i], rhs[j], out[k], *how)
        for i, j, k, *how in zip(
            lhs_space,
            rhs_space,
            out_space,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    )
    return 2 * out[out_batch] * out[out_channel] * rhs[rhs_in] * math.prod(taps)


def _taps(
    lhs: int, rhs: int, out: int, stride: int, padding: tuple[int, int], lhs_dilation, rhs_dilation
) -> int:
    """Pairs (output position, kernel position) of one axis that meet a number of the input."""
    starts = np.arange(out)[:, None] * stride - padding[0]
    position = starts + np.arange(rhs) * rhs_dilation
    inside = (position >= 0) & (position < lhs * lhs_dilation)
    return int(np.sum(inside & (position % lhs_dilation == 0)))


def _kernel(params: dict[str, Any]) -> int:
    estimate = params["cost_estimate"]
    if estimate is None:
        name = params["name"] or params["jaxpr"].debug_info.func_name
        raise ValueError(f"Pallas kernel {name!r} has no cost; give its pallas_call cost_estimate=")
    return estimate.flops


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _refusal(name: str) -> str:
    if name == "while":
        return "a while loop's trip count is known only at run time; use scan or a static fori_loop"
    return f"cannot count the products inside the primitive {name!r}; add it to parallel/cost.py"
