# ruff: noqa: E501 - lines as the compiler writes them
"""Collectives as the compiled text has them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import hlo

# As a TPU's compiler writes: a loop of 5 rounds, in which one all-gather is spread over two
# fusions, and a reduce-scatter outside, which is an all-reduce of which a part is taken.
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

%all-reduce-scatter.3 (input: f32[16,4]) -> f32[2,4] {
  %input = f32[16,4]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[16,4]{1,0:T(8,128)} all-reduce(%input), channel_id=2, to_apply=%add
  ROOT %slice = f32[2,4]{1,0:T(2,128)} dynamic-slice(%all-reduce.5, %place, %zero), dynamic_slice_sizes={2,4}
}

ENTRY %main (x: f32[16,4], y: f32[8]) -> f32[2,4] {
  %x = f32[16,4]{1,0:T(8,128)} parameter(0)
  %y = f32[8]{0:T(128)} parameter(1)
  %w = (s32[]{:T(128)}, bf16[1,96,24,128]{3,1,2,0:T(8,128)(2,1)}) while(%x), condition=%condition, body=%body
  %both = (f32[16,4]{1,0}, /*index=1*/f32[8]{0}) all-reduce(%x, %y), channel_id=3, to_apply=%add
  ROOT %s = f32[2,4]{1,0:T(2,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_a_chain_counts_once_and_a_loop_with_its_trips():
    reduce, gather, scatter = hlo.collectives(TPU)
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
    assert hlo.collectives(text)[2].bytes == 64 * size


def test_what_jax_compiles_is_read():
    mesh = meshes.make_mesh(dict(data=1, fsdp=1, group=8, tensor=1), jax.devices())
    split = PartitionSpec("group")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=split, out_specs=split)
    def swap_three_times_and_sum(x):
        swap = lambda x, _: (jax.lax.all_to_all(x, "group", 1, 0, tiled=True).T, None)
        x, _ = jax.lax.scan(swap, x, length=3)
        return x + jax.lax.psum(x[:1], "group")

    text = jax.jit(swap_three_times_and_sum).lower(jnp.zeros((64, 64))).compile().as_text()
    by_kind = {c.kind: (c.count, c.bytes) for c in hlo.collectives(text)}
    assert by_kind == {"all-to-all": (3, 4 * 8 * 64), "all-reduce": (1, 4 * 64)}
    assert "psum" in {c.kind: c.operation for c in hlo.collectives(text)}["all-reduce"]


@pytest.mark.parametrize("groups", ["{{0},{1}}", "[2,1]<=[2]"])
def test_what_a_device_sends_to_itself_does_not_count(groups):
    text = TPU.replace("channel_id=3,", f"channel_id=3, replica_groups={groups},")
    assert [c.kind for c in hlo.collectives(text)] == ["all-gather", "reduce-scatter"]


def test_a_program_of_one_device_sends_nothing():
    assert hlo.collectives(jax.jit(jnp.sum).lower(jnp.zeros(8)).compile().as_text()) == []


REDUCE = "channel_id=3, to_apply"


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,1},{2,3}}", (0, 1)),
        ("replica_groups={{1,3,5},{0,2,4}}", (1, 3, 5)),
        ("replica_groups={}", ()),
        ("replica_groups=[1,8]<=[8]", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
        ("source_target_pairs={{4,6},{6,4}}", (4, 6)),
        ("source_target_pairs={{0,0},{2,1},{1,2},{3,3}}", (2, 1)),  # 0 sends to itself
        ("replica_groups=mesh['a'=8] {'a'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'c','a'}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", (0, 1)),
        ("replica_groups=mesh['a'=8] {'a':(4)2,'a':(1)2}", (0, 4, 1, 5)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", (0, 2)),
    ],
)
def test_the_first_group_of_devices_that_exchange_is_read_in_every_form(groups, first):
    text = TPU.replace(REDUCE, f"channel_id=3, {groups}, use_global_device_ids=true, to_apply")
    (reduce,) = (c for c in hlo.collectives(text) if c.kind == "all-reduce")
    assert reduce.devices == first


# One collective of each kind as programs go on beside: started, and waited for later.
STARTED = """
ENTRY %main (x: f32[16,4]) -> f32[2,4] {
  %x = f32[16,4]{1,0:T(8,128)} parameter(0)
  %s.1 = (f32[16,4]{1,0}, f32[64,4]{1,0:S(1)}) all-gather-start(%x), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %d.1 = f32[64,4]{1,0} all-gather-done(%s.1)
  %s.2 = (f32[16,4]{1,0}, f32[16,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %d.2 = f32[16,4]{1,0} collective-permute-done(%s.2)
  %s.3 = f32[16,4]{1,0} all-reduce-start(%x), channel_id=3, replica_groups=[2,2]<=[4], to_apply=%add
  %d.3 = f32[16,4]{1,0} all-reduce-done(%s.3)
  %s.4 = ((f32[16,4]{1,0}), f32[4,4]{1,0}, u32[]{:S(2)}) reduce-scatter-start(%x), channel_id=4, dimensions={0}, to_apply=%add
  %d.4 = f32[4,4]{1,0} reduce-scatter-done(%s.4)
  ROOT %n = f32[16,4]{1,0} all-to-all(%d.3), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}
"""


def test_what_is_started_counts_once_by_its_larger_side_and_overlaps():
    by_kind = {c.kind: (c.count, c.bytes, c.overlaps) for c in hlo.collectives(STARTED)}
    assert by_kind == {
        "all-gather": (1, 4 * 256, True),
        "collective-permute": (1, 4 * 64, True),  # not what is sent and what comes, together
        "all-reduce": (1, 4 * 64, True),
        "reduce-scatter": (1, 4 * 64, True),
        "all-to-all": (1, 4 * 64, False),
    }


# Cycles in a loop of 3 rounds of 2 rounds, in a branch, in a call, and on parts of a fusion.
CYCLES = """HloModule jit_step, is_scheduled=true

%parts (p: f32[8]) -> f32[8] {
  ROOT %part = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%inner (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %i.1 = f32[8]{0} fusion(%q), kind=kLoop, calls=%parts, metadata={op_name="jit(step)/inner"}, backend_config={"window_config":{"estimated_cycles":"7"}}
}

%outer (r: (s32[], f32[8])) -> (s32[], f32[8]) {
  %o.1 = f32[8]{0} copy(%r), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %o.2 = (s32[], f32[8]{0}) while(%r), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"2"}}
}

%branch (s: f32[8]) -> f32[8] {
  ROOT %b.1 = f32[8]{0} convolution(%s), backend_config={"window_config":{"estimated_cycles":"20"}}
}

%called (t: f32[8]) -> f32[8] {
  ROOT %t.1 = f32[8]{0} copy(%t), backend_config={"window_config":{"estimated_cycles":"5"}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %w = (s32[], f32[8]{0}) while(%x), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/kernel"}
  %c.1 = f32[8]{0} conditional(%x), branch_computations={%called, %branch}
  ROOT %c.2 = f32[8]{0} call(%x), to_apply=%called
}
"""


def test_cycles_count_with_the_trips_of_loops_in_one_branch_and_never_inside_a_fusion():
    instructions = sorted(hlo.instructions(CYCLES), key=lambda instruction: -instruction.cycles)
    assert instructions == [
        ("copy", 3, 300, ""),
        ("fusion", 6, 42, "jit(step)/inner"),
        ("convolution", 1, 20, ""),  # the costlier branch
        ("copy", 1, 5, ""),  # the call
    ]


def test_a_condition_of_two_named_branches_counts_the_costlier_one_too():
    named = "true_computation=%called, false_computation=%branch"
    text = CYCLES.replace("branch_computations={%called, %branch}", named)
    assert named in text
    assert hlo.instructions(text) == hlo.instructions(CYCLES)


def test_a_program_for_another_device_has_no_cycles():
    assert hlo.instructions(TPU) == []
