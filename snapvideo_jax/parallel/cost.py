"""Parameters and FLOPs counted from abstract shapes: nothing is allocated, compiled or run.

The count is that of MFU: a multiply-add of a matrix product or a convolution is two floating point
operations, and element-wise work (norms, softmax, activations, the optimizer) is none. It is read
from the jaxpr, because the compiler's own analysis counts the body of a loop once, however often
it runs. What a rematerialized block computes again is counted again.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

# Primitives that run the jaxpr they hold once.
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

# Of a kernel's body: operations that move nothing (references, shapes) and what exp costs, in
# operations of the vector units (range reduction and a polynomial; an assumption).
FREE = {"get", "swap", "addupdate", "broadcast_in_dim", "reshape", "squeeze", "program_id"}
EXP = 8


def parameters(abstract_tree: Any) -> int:
    """How many numbers the leaves of a tree hold, arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_tree))


def flops(function: Callable, *abstract_args: Any) -> int:
    """Floating point operations of one call, over all devices together.

    Args:
        function: traced, never run; jitted, sharded, scanned or differentiated as it may be.
        abstract_args: its arguments, arrays or trees of ShapeDtypeStructs.

    Raises:
        ValueError: it holds a while loop whose trip count is only known at run time, a Pallas
            kernel without a cost estimate, or a primitive unknown here that computes products.
    """
    return _of(_traced(function, *abstract_args))


class Kernel(NamedTuple):
    """What all runs of a program's Pallas kernels of one name do, over all devices together.

    rows: of a product's left side that enter a matrix unit of the given `side`, one a cycle.
    elements: of element-wise operations, in whole registers of 8 x 128; exp counts EXP.
    """

    name: str
    runs: int
    rows: int
    elements: int


def kernels(function: Callable, side: int, *abstract_args: Any) -> list[Kernel]:
    """The kernels of one call, to which a TPU's compiler gives no cycles; read from their bodies.

    side: of the chip's matrix units; a product pays for whole tiles of side x side.
    """
    found: dict[str, list[int]] = {}
    _find_kernels(_traced(function, *abstract_args), 1, side, found)
    return [Kernel(name, *numbers) for name, numbers in found.items()]


def _traced(function: Callable, *abstract_args: Any) -> Jaxpr:
    """Of a jitted function its own trace, since one with compiler options cannot be nested."""
    trace = getattr(function, "trace", None) or jax.jit(function).trace
    return trace(*abstract_args).jaxpr.jaxpr


def _find_kernels(jaxpr: Jaxpr, times: int, side: int, found: dict[str, list[int]]) -> None:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "pallas_call":
            steps = times * math.prod(params["grid_mapping"].grid)
            sums = found.setdefault(params["name"] or "kernel", [0, 0, 0])
            rows, elements = _body(params["jaxpr"], side)
            for i, number in enumerate((times, steps * rows, steps * elements)):
                sums[i] += number
            continue
        factor = params["length"] if name == "scan" else 1
        factor *= _devices(params) if name == "shard_map" else 1
        for inner in jaxprs_in_params(params):
            _find_kernels(inner, times * factor, side, found)


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


def _of(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _matmul(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "pallas_call":
        return _kernel(params)
    inner = [_of(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        return _devices(params) * sum(inner)
    if name not in CALLS and any(inner):
        raise ValueError(_refusal(name))
    return sum(inner)


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


def _devices(params: dict[str, Any]) -> int:
    """How many devices run the body of a shard_map, each on its own shard."""
    return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])


def _refusal(name: str) -> str:
    if name == "while":
        return "a while loop's trip count is known only at run time; use scan or a static fori_loop"
    return f"cannot count the products inside the primitive {name!r}; add it to parallel/cost.py"
