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

# cuDNN's attention: primitive -> its products of queries or their gradients with keys or values.
CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
}
# Primitives that compute products, which are what is counted.
PRODUCTS = {"dot_general", "conv_general_dilated", "pallas_call", *CUDNN_PRODUCTS}

# Primitives that run an inner jaxpr as it is; HOLDERS also repeat one or choose among several.
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

# In a kernel's body: operations that compute nothing (they read, write and reshape), and what exp
# costs in operations of the vector units (range reduction and a polynomial; an assumption).
WITHOUT_COST = {"get", "swap", "addupdate", "broadcast_in_dim", "reshape", "squeeze", "program_id"}
EXP = 8


def parameters(abstract_tree: Any) -> int:
    """Counts the numbers in the leaves of a tree, arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_tree))


def flops(function: Callable, *abstract_args: Any, trips: int | None = None) -> int:
    """Counts the floating point operations of one call, summed over all devices.

    Args:
        function: is traced and never run; it may be jitted, sharded, scanned or differentiated.
        abstract_args: its arguments, arrays or trees of ShapeDtypeStructs.
        trips: of loops whose trip count is known only at run time.

    Raises:
        ValueError: it holds a loop of unknown trips and `trips` is None, a Pallas kernel without a
            cost estimate, or a primitive unknown here that computes products.
    """
    return _total(_runs(_jaxpr(function, *abstract_args), trips))


class Kernel(NamedTuple):
    """The work of a program's Pallas kernels of one name, summed over runs and devices.

    rows: rows of left factors that enter a matrix unit, one a cycle. elements: element-wise
    operations, in whole registers of 8 x 128; exp counts EXP.
    """

    name: str
    runs: int
    rows: int
    elements: int


def kernels(
    function: Callable, side: int, *abstract_args: Any, trips: int | None = None
) -> list[Kernel]:
    """Counts the work of one call's kernels, to which a TPU's compiler gives no cycles.

    It is read from the kernels' bodies. side: width of the chip's matrix units; a product pays for
    whole tiles of side x side. trips: as for `flops`.
    """
    sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(3, np.int64))
    for equation, times in _runs(_jaxpr(function, *abstract_args), trips):
        if equation.primitive.name == "pallas_call":
            params = equation.params
            steps = times * math.prod(params["grid_mapping"].grid)
            rows, elements = _body_work(params["jaxpr"], side)
            sums[params["name"] or "kernel"] += times, steps * rows, steps * elements
    return [
        Kernel(name, runs=int(runs), rows=int(rows), elements=int(elements))
        for name, (runs, rows, elements) in sums.items()
    ]


def _jaxpr(function: Callable, *abstract_args: Any) -> Jaxpr:
    """Traces `function`; a jitted one by its own trace, since compiler options cannot be nested."""
    trace = getattr(function, "trace", None) or jax.jit(function).trace
    return trace(*abstract_args).jaxpr.jaxpr


def _runs(jaxpr: Jaxpr, trips: int | None, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Yields each equation that computes products, and how often it runs on all devices together.

    A loop's body runs as often as the loop; of the branches of a cond, the costliest one runs.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in PRODUCTS:
            yield equation, times
            continue
        inner_times = times * _repeats(equation, trips)
        inner = jaxprs_in_params(equation.params)
        branches = [list(_runs(jaxpr, trips, inner_times)) for jaxpr in inner]
        countable = name in HOLDERS or (name == "while" and trips is not None)
        if any(branches) and not countable:
            raise ValueError(_refusal(name))
        yield from max(branches, key=_total) if name == "cond" else itertools.chain(*branches)


def _repeats(equation: JaxprEqn, trips: int | None) -> int:
    """Returns a loop's trips, or the number of devices that run a shard_map's body."""
    params = equation.params
    if equation.primitive.name == "scan":
        return params["length"]
    if equation.primitive.name == "while":
        return trips or 1
    if equation.primitive.name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _total(runs: Iterable[tuple[JaxprEqn, int]]) -> int:
    return sum(times * _flops(equation) for equation, times in runs)


def _flops(equation: JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        return _matmul_flops(equation)
    if equation.primitive.name == "conv_general_dilated":
        return _convolution_flops(equation)
    if equation.primitive.name in CUDNN_PRODUCTS:
        return _cudnn_flops(equation)
    return _kernel_flops(equation.params)


def _body_work(jaxpr: Jaxpr, side: int) -> tuple[int, int]:
    """Counts (rows, elements) of one step of a kernel's grid, leaving out what some steps skip."""
    rows = elements = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            rows += _tile_rows(equation, side)
        elif name in CALLS or name == "scan":
            inner = [_body_work(inner, side) for inner in jaxprs_in_params(equation.params)]
            turns = _repeats(equation, trips=None)
            rows += turns * sum(r for r, _ in inner)
            elements += turns * sum(e for _, e in inner)
        elif name not in WITHOUT_COST and name != "cond":
            shapes = map(_shape, (*equation.invars, *equation.outvars))
            largest = max(shapes, key=math.prod, default=())
            elements += (EXP if name == "exp" else 1) * _register_elements(largest)
    return rows, elements


def _tile_rows(equation: JaxprEqn, side: int) -> int:
    """Counts the rows that enter a matrix unit for a product, cut into tiles of side x side."""
    ((contracted, _), _) = equation.params["dimension_numbers"]
    lhs, rhs = (_shape(variable) for variable in equation.invars)
    inner = math.prod(lhs[axis] for axis in contracted)
    outer = math.prod(lhs) // inner, math.prod(rhs) // inner
    return outer[0] * math.ceil(inner / side) * math.ceil(outer[1] / side)


def _register_elements(shape: tuple[int, ...]) -> int:
    """Counts the elements of an array, in whole registers of 8 x 128."""
    *outer, rows, lanes = (1, 1, *shape)
    return math.prod(outer) * math.ceil(rows / 8) * 8 * math.ceil(lanes / 128) * 128


def _matmul_flops(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(lhs[i] for i in contracted)


def _convolution_flops(equation: JaxprEqn) -> int:
    """Counts products with numbers of the input, and none with padding or a dilation's holes.

    So a convolution, its gradient to the input and its gradient to the kernel count the same.
    """
    lhs, rhs, out = map(_shape, (*equation.invars, *equation.outvars))
    numbers, params = equation.params["dimension_numbers"], equation.params
    (_, _, *lhs_space), (_, rhs_in, *rhs_space) = numbers.lhs_spec, numbers.rhs_spec
    out_batch, out_channel, *out_space = numbers.out_spec
    taps = (
        _taps(
            lhs[lhs_space[axis]],
            rhs[rhs_space[axis]],
            out[out_space[axis]],
            stride=params["window_strides"][axis],
            padding=params["padding"][axis],
            lhs_dilation=params["lhs_dilation"][axis],
            rhs_dilation=params["rhs_dilation"][axis],
        )
        for axis in range(len(out_space))
    )
    return 2 * out[out_batch] * out[out_channel] * rhs[rhs_in] * math.prod(taps)


def _taps(
    lhs: int,
    rhs: int,
    out: int,
    *,
    stride: int,
    padding: tuple[int, int],
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Counts pairs (output position, kernel position) along one axis that meet an input number."""
    starts = np.arange(out)[:, None] * stride - padding[0]
    position = starts + np.arange(rhs) * rhs_dilation
    inside = (position >= 0) & (position < lhs * lhs_dilation)
    return int(np.sum(inside & (position % lhs_dilation == 0)))


def _cudnn_flops(equation: JaxprEqn) -> int:
    queries, keys = (_shape(variable) for variable in equation.invars[:2])  # [b n A d], [b k A d]
    return 2 * CUDNN_PRODUCTS[equation.primitive.name] * math.prod(queries) * keys[1]


def _kernel_flops(params: dict[str, Any]) -> int:
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
    return f"cannot count the products inside the primitive {name!r}; add it to planner/cost.py"
