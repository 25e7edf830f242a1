"""Attention on a TPU in one kernel, forward and backward, over all keys at once.

FIT attends to few keys at a time (24 to 4,608, paper Table 8), and its rivals to all patches of a
video or frame (to 10,240, docs/benchmark.md), so a row of scores is never cut: it needs no running
maximum, and the gradient needs nothing but the inputs. Scores stay on the chip.
Heads lie side by side in the last dimension, as projections make them, so no token is moved.
Short sequences, such as the frames at one place of a U-Net, are packed: several share a row, and
their tokens see only those of their own sequence.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

LANES = 128
ROWS = 512  # queries of a block, at most
BLOCK_SCORES = 2**22  # of a head, at most: of more than 8,192 keys, a block has fewer queries
MAX_KEYS = 10_240
# Of a head and a row of tokens; with fewer, starting a step of the grid takes longer than its work.
MIN_SCORES = 4096
TURN_SCORES = 2**19  # of the heads that are written out one after the other, at least
MASKED = -1e30
VMEM_BYTES = 64 * 2**20  # a kernel's limit: all that a v5p core has, by JAX's table


def fits(q: Any, k: Any) -> bool:
    """Returns whether the kernel takes q [*b n A d] and k [*b k A d]: enough work, and room."""
    n, keys, d = q.shape[-3], k.shape[-3], q.shape[-1]
    scores = n * keys * sequences_per_row(q, k) ** 2
    return keys <= MAX_KEYS and scores >= MIN_SCORES and d % 8 == 0


def sequences_per_row(q: Any, k: Any) -> int:
    """Returns how many sequences that attend to themselves fill LANES together, or 1."""
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
    """out = softmax(q k^T / sqrt(d)) v, over the keys where `mask` is True."""
    n, heads, d = q.shape[-3:]
    if mask is None:
        sequences, bias = sequences_per_row(q, k), None
    else:
        sequences, bias = 1, jnp.where(mask, 0.0, MASKED).reshape(-1, 1, mask.shape[-1])
    rows = lambda x: x.reshape(-1, sequences * x.shape[-3], heads * d)
    packing = _Packing(heads, sequence=n if sequences > 1 else 0)
    out: Any = _attention(packing, rows(q), rows(k), rows(v), bias)
    return out.reshape(q.shape)


class _Packing(NamedTuple):
    """What lies in a row [tokens, heads x d]. sequence: tokens of each; 0 where a row is one."""

    heads: int
    sequence: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(packing: _Packing, q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    blocks = _blocks(packing, q, k)
    queries, keys = blocks.queries(), blocks.all_keys()
    inputs = [(q, queries), (k, keys), (v, keys)]
    return _call(_forward, blocks, inputs, bias=bias, outputs=[(q, queries)])[0]


def _attention_forward(
    packing: _Packing, q: Array, k: Array, v: Array, bias: Array | None
) -> tuple:
    return _attention(packing, q, k, v, bias), (q, k, v, bias)


def _attention_backward(packing: _Packing, residuals: tuple, dout: Array) -> tuple:
    q, k, v, bias = residuals
    blocks = _blocks(packing, q, k)
    queries, keys = blocks.queries(), blocks.all_keys()
    gradients = _call(
        _backward,
        blocks,
        inputs=[(q, queries), (k, keys), (v, keys), (dout, queries)],
        bias=bias,
        outputs=[(q, queries), (k, keys), (v, keys)],
        scratch=[pltpu.VMEM((1, k.shape[1], blocks.width), jnp.float32)] * 2,
    )
    return *gradients, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_forward, _attention_backward)


class _Blocks(NamedTuple):
    """How the work is cut into steps of the grid (rows of the batch, blocks of heads, of queries).

    A step has `width` lanes, which are whole heads of width d, and `rows` queries of one row of the
    batch; the steps over the queries come last. sequence: as of `_Packing`.
    """

    grid: tuple[int, int, int]
    rows: int
    keys: int
    width: int
    d: int
    sequence: int

    def queries(self) -> pl.BlockSpec:
        """Returns the block of the queries, and of whatever has their shape."""
        return pl.BlockSpec((1, self.rows, self.width), lambda b, h, i: (b, i, h))

    def all_keys(self) -> pl.BlockSpec:
        """Returns the block of the keys, and of whatever has their shape."""
        return pl.BlockSpec((1, self.keys, self.width), lambda b, h, i: (b, 0, h))

    def bias(self) -> pl.BlockSpec:
        """Returns the block of the bias on the keys."""
        return pl.BlockSpec((1, 1, self.keys), lambda b, h, i: (b, 0, 0))

    @property
    def turn(self) -> int:
        """Lanes of the heads that are written out one after the other; a loop has the others."""
        unit = math.lcm(self.d, LANES)
        enough = lambda size: size // self.d * self.rows * self.keys >= TURN_SCORES
        sizes = (n for n in range(unit, self.width, unit) if self.width % n == 0 and enough(n))
        return next(sizes, self.width) if self.width % unit == 0 else self.width

    def heads_of_turn(self) -> list[slice]:
        """Returns the lanes of each head of a turn."""
        return [slice(start, start + self.d) for start in range(0, self.turn, self.d)]

    def each_turn(self, body: Callable[[Any], None]) -> None:
        """Calls `body` with the lanes of each turn."""
        turns = self.width // self.turn
        if turns == 1:
            body(slice(None))
        else:
            lanes = lambda i: pl.ds(pl.multiple_of(i * self.turn, LANES), self.turn)
            jax.lax.fori_loop(0, turns, lambda i, _: body(lanes(i)), None)


def _blocks(packing: _Packing, q: Array, k: Array) -> _Blocks:
    batch, n, width = q.shape
    d, keys = width // packing.heads, k.shape[1]
    most = min(ROWS, BLOCK_SCORES // keys)
    rows = max((r for r in range(8, most + 1, 8) if n % r == 0), default=n)
    lanes = math.lcm(d, LANES)
    if width % lanes or (n + keys) * width <= 2**20:
        lanes = width
    grid = (batch, width // lanes, n // rows)
    return _Blocks(grid, rows=rows, keys=keys, width=lanes, d=d, sequence=packing.sequence)


Operands = list[tuple[Array, pl.BlockSpec]]  # arrays, and their blocks


def _call(
    body: Any,
    blocks: _Blocks,
    inputs: Operands,
    bias: Array | None,
    outputs: Operands,
    scratch: Sequence[Any] = (),
) -> Sequence[Array]:
    """Runs `body` over the grid; outputs have the shapes and dtypes of the arrays in `outputs`."""
    if bias is not None:
        inputs = [*inputs, (bias, blocks.bias())]
    arrays = [array for array, _ in inputs]
    like = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array, _ in outputs]
    products = 2 if body is _forward else 5
    scores = math.prod(blocks.grid) * (blocks.width // blocks.d) * blocks.rows * blocks.keys
    return pl.pallas_call(
        functools.partial(body, blocks, bias is not None),
        grid=blocks.grid,
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=like,
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * blocks.d,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in (*arrays, *like)),
            transcendentals=scores,
        ),
        name=body.__name__.strip("_") + "_attention",
    )(*arrays)


def _forward(blocks: _Blocks, masked: bool, *refs: Any) -> None:
    q_ref, k_ref, v_ref, *bias_ref, out_ref = refs

    def turn(lanes: Any) -> None:
        inputs, (out_of,) = _of_turn((q_ref, k_ref, v_ref), lanes), _of_turn((out_ref,), lanes)
        for head in blocks.heads_of_turn():
            q, k, v = (of[:, head] for of in inputs)
            scores, total = _weights(q, k, bias_ref[0] if masked else None, blocks.sequence)
            out = _product(scores.astype(v.dtype), v, axes=(1, 0)) / total
            out_of[:, head] = out.astype(out_ref.dtype)

    blocks.each_turn(turn)


def _backward(blocks: _Blocks, masked: bool, *refs: Any) -> None:
    q_ref, k_ref, v_ref, dout_ref, *bias_ref = refs[: 5 if masked else 4]
    dq_ref, dk_ref, dv_ref, dk_sum, dv_sum = refs[5 if masked else 4 :]
    step, last = pl.program_id(2), pl.num_programs(2) - 1

    @pl.when(step == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    def turn(lanes: Any) -> None:
        inputs = _of_turn((q_ref, k_ref, v_ref, dout_ref), lanes)
        dq_of, dk_of, dv_of = _of_turn((dq_ref, dk_sum, dv_sum), lanes)
        for head in blocks.heads_of_turn():
            q, k, v, dout = (of[:, head] for of in inputs)
            weights, total = _weights(q, k, bias_ref[0] if masked else None, blocks.sequence)
            weights = weights / total
            dweights = _product(dout, v, axes=(1, 1))
            mean = jnp.sum(weights * dweights, axis=-1, keepdims=True)
            dscores = (weights * (dweights - mean) * blocks.d**-0.5).astype(q.dtype)
            dq_of[:, head] = _product(dscores, k, axes=(1, 0)).astype(dq_ref.dtype)
            dk_of[:, head] += _product(dscores, q, axes=(0, 0))
            dv_of[:, head] += _product(weights.astype(dout.dtype), dout, axes=(0, 0))

    blocks.each_turn(turn)

    @pl.when(step == last)
    def _():
        dk_ref[...] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)


def _of_turn(refs: Sequence[Any], lanes: Any) -> list[Any]:
    """Returns the lanes of a turn of each array of a block, [tokens, lanes]."""
    return [ref.at[0, :, lanes] for ref in refs]


def _weights(q: Array, k: Array, bias_ref: Any, sequence: int) -> tuple[Array, Array]:
    """Returns exp(scores - their maximum) and its sums, in float32."""
    scores = _product(q, k, axes=(1, 1)) * q.shape[-1] ** -0.5
    if sequence:  # a block holds all queries of a row, so its numbers are those of the row
        token = lambda axis: jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis)
        scores = jnp.where(token(0) // sequence == token(1) // sequence, scores, MASKED)
    if bias_ref is not None:
        scores = scores + bias_ref[0]
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Multiplies two matrices, summed over an axis of each, in float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    contracted = (axes[0],), (axes[1],)
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), precision=exact, preferred_element_type=jnp.float32
    )
