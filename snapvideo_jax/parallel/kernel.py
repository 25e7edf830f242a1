"""Attention on a TPU in one kernel, forward and backward, over all keys at once.

FIT attends over few keys at a time (24 to 4,608, paper Table 8), so a row of scores is never cut:
no running maximum, and nothing but the inputs is kept for the gradient. Scores stay on the chip.
Heads lie side by side in the last dimension, as projections make them, so no token is moved.
Short sequences, such as the frames at one place of a U-Net, are packed: several lie in one, whose
tokens see those of their own alone.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

LANES = 128
ROWS = 512  # queries at a time, at most
MOST_KEYS = 8192
FEWEST_SCORES = (
    4096  # of a head and a row of tokens; below, starting a step costs more than it does
)
MASKED = -1e30
BYTES = 64 * 2**20  # of fast memory that a kernel may take: all that a v5p core has, by JAX's table


def fits(q: Any, k: Any) -> bool:
    """Whether the kernel takes q [*b n A d] and k [*b k A d]: enough work a call, and room."""
    n, keys, d = q.shape[-3], k.shape[-3], q.shape[-1]
    scores = n * keys * packed(q, k) ** 2
    return keys <= MOST_KEYS and scores >= FEWEST_SCORES and d % 8 == 0


def packed(q: Any, k: Any) -> int:
    """How many sequences that attend to themselves lie in one: as many as fill LANES, or 1."""
    n, keys = q.shape[-3], k.shape[-3]
    several = LANES // n
    fills = n == keys and several * n == LANES and math.prod(q.shape[:-3]) % several == 0
    return several if fills else 1


def attention(
    q: Float[Array, "*b n A d"],
    k: Float[Array, "*b k A d"],
    v: Float[Array, "*b k A d"],
    mask: Bool[Array, "*b k"] | None = None,
) -> Float[Array, "*b n A d"]:
    """Softmax attention, scaled by 1 / sqrt(d); `mask` is True at the keys that may be seen."""
    n, heads, d = q.shape[-3:]
    several, bias = 1, None
    if mask is None:
        several = packed(q, k)
    else:
        bias = jnp.where(mask, 0.0, MASKED).reshape(-1, 1, mask.shape[-1])
    rows = lambda x: x.reshape(-1, several * x.shape[-3], heads * d)
    how = heads, n if several > 1 else 0
    out: Any = _attention(how, rows(q), rows(k), rows(v), bias)
    return out.reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: tuple[int, int], q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    plan = _plan(how, q, k)
    queries, keys, tail = plan.specs(bias)
    return _call(_forward, plan, [queries, keys, keys, *tail], [queries], [q], q, k, v, bias)[0]


def _attention_forward(
    how: tuple[int, int], q: Array, k: Array, v: Array, bias: Array | None
) -> tuple:
    return _attention(how, q, k, v, bias), (q, k, v, bias)


def _attention_backward(how: tuple[int, int], kept: tuple, slope: Array) -> tuple:
    q, k, v, bias = kept
    plan = _plan(how, q, k)
    queries, keys, tail = plan.specs(bias)
    inputs = [queries, keys, keys, queries, *tail]
    sums = [pltpu.VMEM((k.shape[1], plan.width), jnp.float32)] * 2
    outputs = [queries, keys, keys]
    made = _call(_backward, plan, inputs, outputs, [q, k, v], q, k, v, slope, bias, scratch=sums)
    return *made, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_forward, _attention_backward)


class _Plan(NamedTuple):
    """How the work is cut: a step of the grid has `width` lanes of whole heads and `rows` queries
    of one batch row; the steps over the queries come last. alone: tokens of each of the sequences
    packed in a row; 0 where it is one.
    """

    grid: tuple[int, int, int]
    rows: int
    keys: int
    width: int
    d: int
    alone: int

    def specs(self, bias: Array | None) -> tuple:
        """Blocks of the queries, of the keys, and [those of the bias]."""
        queries = pl.BlockSpec((1, self.rows, self.width), lambda b, h, i: (b, i, h))
        keys = pl.BlockSpec((1, self.keys, self.width), lambda b, h, i: (b, 0, h))
        tail = pl.BlockSpec((1, 1, self.keys), lambda b, h, i: (b, 0, 0))
        return queries, keys, [] if bias is None else [tail]


def _plan(how: tuple[int, int], q: Array, k: Array) -> _Plan:
    """how: heads and `alone`."""
    heads, alone = how
    batch, n, width = q.shape
    d, keys = width // heads, k.shape[1]
    rows = max((r for r in range(8, ROWS + 1, 8) if n % r == 0), default=n)
    lanes = math.lcm(d, LANES)
    if width % lanes or (n + keys) * width <= 2**20:
        lanes = width
    return _Plan((batch, width // lanes, n // rows), rows, keys, lanes, d, alone)


def _call(
    body: Any, plan: _Plan, inputs: list, outputs: list, like: list, *arrays: Any, scratch: Any = ()
) -> list:
    """`body` over the grid of `plan`; the outputs have the shapes of the arrays `like`."""
    given = [array for array in arrays if array is not None]
    products = 2 if body is _forward else 5
    scores = math.prod(plan.grid[:2]) * (plan.width // plan.d) * plan.grid[2] * plan.rows
    scores *= plan.keys
    moved = sum(a.size * a.dtype.itemsize for a in (*given, *like))
    return pl.pallas_call(
        functools.partial(body, plan, len(given) > (3 if body is _forward else 4)),
        grid=plan.grid,
        in_specs=inputs,
        out_specs=outputs,
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in like],
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * plan.d, bytes_accessed=moved, transcendentals=scores
        ),
        name=body.__name__.strip("_") + "_attention",
    )(*given)


def _forward(plan: _Plan, masked: bool, *refs: Any) -> None:
    q_ref, k_ref, v_ref, *bias_ref, out_ref = refs
    d = plan.d
    for head in range(plan.width // d):
        q, k, v = (_head(ref, head, d) for ref in (q_ref, k_ref, v_ref))
        scores, total = _weights(q, k, bias_ref[0] if masked else None, plan.alone)
        out = _product(scores.astype(v.dtype), v, 1, 0) / total
        out_ref[0, :, head * d : (head + 1) * d] = out.astype(out_ref.dtype)


def _backward(plan: _Plan, masked: bool, *refs: Any) -> None:
    d = plan.d
    q_ref, k_ref, v_ref, slope_ref, *bias_ref = refs[: 5 if masked else 4]
    dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs[5 if masked else 4 :]
    step, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(step == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    for head in range(plan.width // d):
        q, k, v, slope = (_head(ref, head, d) for ref in (q_ref, k_ref, v_ref, slope_ref))
        weights, total = _weights(q, k, bias_ref[0] if masked else None, plan.alone)
        weights = weights / total
        dweights = _product(slope, v, 1, 1)
        mean = jnp.sum(weights * dweights, axis=-1, keepdims=True)
        dscores = (weights * (dweights - mean) * d**-0.5).astype(q.dtype)
        lanes = slice(head * d, (head + 1) * d)
        dq_ref[0, :, lanes] = _product(dscores, k, 1, 0).astype(dq_ref.dtype)
        dk_sum[:, lanes] += _product(dscores, q, 0, 0)
        dv_sum[:, lanes] += _product(weights.astype(slope.dtype), slope, 0, 0)

    @pl.when(step == last)
    def _():
        dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)


def _head(ref: Any, head: int, d: int) -> Array:
    return ref[0, :, head * d : (head + 1) * d]


def _weights(q: Array, k: Array, bias_ref: Any, alone: int) -> tuple[Array, Array]:
    """exp of the scores less their maximum, and its sums, in float32."""
    scores = _product(q, k, 1, 1) * q.shape[-1] ** -0.5
    if alone:  # all queries of a row are in one block, so its numbers are those of the row
        of = [jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) // alone for axis in (0, 1)]
        scores = jnp.where(of[0] == of[1], scores, MASKED)
    if bias_ref is not None:
        scores = scores + bias_ref[0]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The sum over one axis of each, in float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), exact, preferred_element_type=jnp.float32
    )
