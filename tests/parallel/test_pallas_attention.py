"""The TPU's kernel, interpreted: softmax attention and its gradient, as the plain product's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.parallel import pallas_attention
from snapvideo_jax.planner import cost

# Batch, queries, keys, heads, their width, whether keys are masked.
CASES = {
    "read, three groups": ((2, 3), 24, 40, 4, 48, False),
    "write, queries in two blocks": ((2,), 1040, 24, 2, 64, False),
    "latents, heads apart": ((1,), 16, 4096, 4, 128, False),
    "conditions, masked": ((3,), 16, 133, 2, 64, True),
    "frames at a place, eight places packed": ((16,), 16, 16, 2, 64, False),
}


def draw(batch, n, k, heads, width, masked):
    key = jax.random.split(jax.random.key(0), 5)
    normal = lambda i, rows: jax.random.normal(key[i], (*batch, rows, heads, width))
    mask = (jax.random.uniform(key[4], (*batch, k)) > 0.4) if masked else None
    return (normal(0, n), normal(1, k), normal(2, k)), normal(3, n), mask


def test_heads_in_a_loop_attend_as_they_do_one_after_the_other(monkeypatch):
    qkv, dout, _ = draw((2,), 16, 24, 6, 64, False)
    row = jnp.zeros((2, 16, 6 * 64))
    turn = lambda: pallas_attention._blocks(pallas_attention._Packing(6, 0), row, row).turn

    def out_and_gradients():
        with pltpu.force_tpu_interpret_mode():
            out, pull_back = jax.vjp(pallas_attention.attention, *qkv)
            return out, *pull_back(dout)

    assert turn() == 6 * 64
    in_a_row = out_and_gradients()
    monkeypatch.setattr(pallas_attention, "TURN_SCORES", 1)
    assert turn() == 2 * 64
    for a, b in zip(out_and_gradients(), in_a_row, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_softmax_attention_and_so_is_its_gradient(case):
    qkv, dout, mask = draw(*case)
    total = lambda attend: lambda *qkv: jnp.sum(attend(*qkv, mask) * dout)
    with pltpu.force_tpu_interpret_mode():
        out = pallas_attention.attention(*qkv, mask)
        gradients = jax.grad(total(pallas_attention.attention), (0, 1, 2))(*qkv)
    np.testing.assert_allclose(out, dot_product_attention(*qkv, mask), atol=1e-5)
    expected = jax.grad(total(dot_product_attention), (0, 1, 2))(*qkv)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_short_sequences_are_packed_where_they_fill_rows():
    tokens = lambda batch, n, width=64: jax.ShapeDtypeStruct((*batch, n, 2, width), jnp.bfloat16)
    packed = lambda batch, n, keys: pallas_attention.sequences_per_row(
        tokens(batch, n), tokens(batch, keys)
    )
    assert packed((5120,), 16, 16) == packed((2, 4), 16, 16) == 8
    assert packed((9,), 16, 16) == 1  # would leave a row with seven places empty
    assert packed((16,), 24, 24) == packed((16,), 16, 24) == packed((16,), 256, 256) == 1
    fits = lambda batch: pallas_attention.fits(tokens(batch, 16), tokens(batch, 16))
    assert fits((16,)) and not fits((9,))


def test_a_block_has_fewer_queries_where_keys_are_many():
    """All patches of a DiT at 16 x 72 x 128 are 10,240; FIT's and fewer have blocks of 512."""
    tokens = lambda n: jax.ShapeDtypeStruct((1, n, 16, 64), jnp.bfloat16)
    row = lambda n: jnp.zeros((1, n, 16 * 64), jnp.bfloat16)
    blocks = lambda n: pallas_attention._blocks(pallas_attention._Packing(16, 0), row(n), row(n))
    assert blocks(8192).rows == blocks(2560).rows == 512
    assert blocks(10_240).rows == 320 and blocks(10_240).grid == (1, 8, 32)
    fits = lambda n: pallas_attention.fits(tokens(n), tokens(n))
    assert fits(10_240) and not fits(81_920)


def test_bfloat16_goes_in_and_out_with_float32_between():
    qkv, _, _ = draw((1,), 64, 64, 2, 64, False)
    half = [x.astype(jnp.bfloat16) for x in qkv]
    with pltpu.force_tpu_interpret_mode():
        out = pallas_attention.attention(*half)
    assert out.dtype == jnp.bfloat16
    exact = dot_product_attention(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


def test_its_cost_counts_both_products_of_every_head_and_five_in_the_gradient():
    q = jax.ShapeDtypeStruct((3, 256, 4, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((3, 128, 4, 64), jnp.bfloat16)
    scores = 3 * 4 * 256 * 128
    assert cost.flops(pallas_attention.attention, q, k, k) == 2 * 2 * scores * 64
    gradient = jax.grad(lambda *qkv: jnp.sum(pallas_attention.attention(*qkv)), (0, 1, 2))
    assert cost.flops(gradient, q, k, k) == (2 + 5) * 2 * scores * 64


def test_a_matrix_unit_pays_for_whole_tiles():
    shape = jax.ShapeDtypeStruct((3, 256, 4, 64), jnp.bfloat16)
    (narrow,) = cost.kernels(pallas_attention.attention, 128, shape, shape, shape)
    # A head's 256 queries against two tiles of keys, 64 of 128 rows of each in use; then 256 rows
    # of weights through two tiles of values, 64 of 128 columns of each in use.
    assert (narrow.name, narrow.runs, narrow.rows) == ("forward_attention", 1, 3 * 4 * (512 + 512))
    scores = 3 * 4 * 256 * 256
    assert (cost.EXP + 4) * scores < narrow.elements < (cost.EXP + 7) * scores
    (wide,) = cost.kernels(pallas_attention.attention, 256, shape, shape, shape)
    assert wide.rows == narrow.rows / 2


def test_heads_in_a_loop_cost_what_they_cost_one_after_the_other(monkeypatch):
    shape = jax.ShapeDtypeStruct((1, 256, 4, 64), jnp.bfloat16)
    count = lambda: cost.kernels(pallas_attention.attention, 128, shape, shape, shape)
    monkeypatch.setattr(pallas_attention, "TURN_SCORES", 2**30)
    in_a_row = count()
    monkeypatch.setattr(pallas_attention, "TURN_SCORES", 1)
    assert count() == in_a_row


def test_a_kernel_counts_in_every_turn_of_a_loop_and_in_one_branch_of_a_choice():
    shape = jax.ShapeDtypeStruct((3, 256, 4, 64), jnp.bfloat16)
    (single,) = cost.kernels(pallas_attention.attention, 128, shape, shape, shape)

    def chosen(q, k, v):
        attend = lambda q: pallas_attention.attention(q, k, v)
        turn = lambda _, q: jax.lax.cond(q[0, 0, 0, 0] > 0, attend, lambda q: attend(attend(q)), q)
        return jax.lax.fori_loop(0, 5, turn, q)

    (total,) = cost.kernels(chosen, 128, shape, shape, shape)
    assert total[1:] == tuple(5 * 2 * number for number in single[1:])
