# ruff: noqa: E501 - lines as the compiler writes them
"""Collectives as the compiled text has them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from snapvideo_jax.parallel import hlo
from snapvideo_jax.parallel import mesh as meshes

# As a TPU's compiler writes: a loop of 5 rounds, in which one all-gather is spread over two
# fusions, and a reduce-scatter outside.
TPU = """HloModule jit_step, is_scheduled=true

%fused.1 (param_0: bf16[1,96,24,128]) -> bf16[1,768,24,128] {
  %param_0 = bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[1,768,24,128]{3,1,2,0:T(8,128)(2,1)S(1)} all-gather(%param_0), channel_id=1, frontend_attributes={chain_id="4"}, dimensions={1}, metadata={op_name="jit(step)/read" stack_frame_id=1}
}

%fused.2 (param_1: bf16[1,96,24,128]) -> bf16[1,768,24,128] {
  %param_1 = bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,768,24,128]{3,1,2,0:T(8,128)(2,1)} all-gather(%param_1), channel_id=1, frontend_attributes={chain_id="4"}, dimensions={1}, metadata={op_name="jit(step)/read" stack_frame_id=1}
}

%body (p: (s32[], bf16[1,96,24,128])) -> (s32[], bf16[1,96,24,128]) {
  %p = (s32[]{:T(128)}, bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)}) parameter(0)
  %f.1 = bf16[1,768,24,128]{3,1,2,0:T(8,128)(2,1)} fusion(%p), kind=kCustom, calls=%fused.1
  %f.2 = bf16[1,768,24,128]{3,1,2,0:T(8,128)(2,1)} fusion(%p), kind=kCustom, calls=%fused.2
  ROOT %t = (s32[]{:T(128)}, bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)}) tuple(%p, %f.1)
}

%condition (q: (s32[], bf16[1,96,24,128])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)}) parameter(0)
  %five = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT
}

ENTRY %main (x: f32[16,4], y: f32[8]) -> f32[2,4] {
  %x = f32[16,4]{1,0:T(8,128)} parameter(0)
  %y = f32[8]{0:T(128)} parameter(1)
  %w = (s32[]{:T(128)}, bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)}) while(%x), condition=%condition, body=%body
  %both = (f32[16,4]{1,0}, /*index=1*/f32[8]{0}) all-reduce(%x, %y), channel_id=3, to_apply=%add
  ROOT %s = f32[2,4]{1,0:T(2,128)} reduce-scatter(%x), channel_id=2, dimensions={0}, to_apply=%add
}
"""


def test_a_chain_counts_once_and_a_loop_with_its_trips():
    reduce, scatter, gather = hlo.collectives(TPU)
    assert gather == (
        "all-gather",
        5,
        2 * 768 * 24 * 128,
        ("bf16[1,768,24,128]",),
        "jit(step)/read",
        (),
        True,
    )
    assert reduce[:4] == ("all-reduce", 1, 4 * (64 + 8), ("f32[16,4]", "f32[8]"))
    assert scatter[:4] == ("reduce-scatter", 1, 4 * 64, ("f32[16,4]",))  # before it is scattered


@pytest.mark.parametrize(
    ("dtype", "size"), [("f32", 4), ("bf16", 2), ("pred", 1), ("f8e4m3fn", 1), ("s64", 8)]
)
def test_bytes_of_every_type(dtype, size):
    text = TPU.replace("f32[16,4]", f"{dtype}[16,4]").replace("f32[2,4]", f"{dtype}[2,4]")
    assert hlo.collectives(text)[1].bytes == 64 * size


def test_what_jax_compiles_is_read():
    mesh = meshes.make_mesh(dict(data=1, fsdp=1, group=8, tensor=1), jax.devices())
    split = PartitionSpec("group")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=split)
    def swap_three_times_and_sum(x):
        swap = lambda x, _: (jax.lax.all_to_all(x, "group", 1, 0, tiled=True).T, None)
        x, _ = jax.lax.scan(swap, x, length=3)
        return x + jax.lax.psum(x[:1], "group")

    text = jax.jit(swap_three_times_and_sum).lower(jnp.zeros((64, 64))).compile().as_text()
    found = {c.kind: (c.count, c.bytes) for c in hlo.collectives(text)}
    assert found == {"all-to-all": (3, 4 * 8 * 64), "all-reduce": (1, 4 * 64)}
    assert "psum" in {c.kind: c.operation for c in hlo.collectives(text)}["all-reduce"]


@pytest.mark.parametrize("groups", ["{{0},{1}}", "[2,1]<=[2]"])
def test_what_a_device_sends_to_itself_does_not_count(groups):
    text = TPU.replace("channel_id=3,", f"channel_id=3, replica_groups={groups},")
    assert [c.kind for c in hlo.collectives(text)] == ["reduce-scatter", "all-gather"]


def test_a_program_of_one_device_sends_nothing():
    assert hlo.collectives(jax.jit(jnp.sum).lower(jnp.zeros(8)).compile().as_text()) == []
