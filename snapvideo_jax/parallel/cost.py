"""Parameters and FLOPs counted from abstract shapes: nothing is allocated, compiled or run.

The count is that of MFU: a multiply-add of a matrix product or a convolution is two floating point
operations, and element-wise work (norms, softmax, activations, the optimizer) is none. It is read
from the jaxpr, because the compiler's own analysis counts the body of a loop once, however often
it runs. What a rematerialized block computes again is counted again.
"""

import math
from collections.abc import Callable
from typing import Any

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
    return _of(jax.make_jaxpr(function)(*abstract_args).jaxpr)


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
