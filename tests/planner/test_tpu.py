"""What the TPU's own compiler makes of a block of the upsampler, for slices that nobody booked.

bash tests/run.sh tests/planner/test_tpu.py -m slow     the block at its full size (minutes)
"""

import re
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import fit_3b9_upsampler, shapes
from snapvideo_jax import build, trees
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.fit import FITBlock
from snapvideo_jax.models.layers import dense, dot_product_attention
from snapvideo_jax.models.remat import remat_module
from snapvideo_jax.parallel import attention, chips, rules
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner import (
    compiler,
    cost,
    estimate,
    estimate_table,
    hlo,
    predict,
    programs,
    topology,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("libtpu")
TOKENS = 133  # of conditions: 128 of text, and five numbers


def full():
    return fit_3b9_upsampler.get_config()


def small():
    """The same block, thinner and with 8 groups of 288 patches."""
    config = full()
    config.data.update(num_frames=4, height=72, width=128, low_res=(9, 16))
    config.model.conditioning_channels = 128
    config.model.fit.update(
        group=(4, 9, 8),
        patch_channels=256,
        latents=128,
        latent_channels=512,
        global_layers=1,
        latent_head_channels=64,
    )
    return config


class Compiled(NamedTuple):
    """Of one chip: what it sends, its temporary bytes and its FLOPs. sizes: bytes of a video's."""

    collectives: list[hlo.Collective]
    temporaries: int
    flops: float
    latents: int
    patches: int


def block_gradient(config, **sizes):
    """The gradient of a block to its tokens, remat_module, one video for each part of a batch."""
    chips = topology.devices("v5e:4x4")
    mesh = meshes.make_mesh(dict(data=1, fsdp=1, group=1, tensor=1) | sizes, chips)
    net, B = build.network(config, dot_product_attention), meshes.ways(mesh, meshes.BATCH_AXES)
    (G, m, D), n, C, E = (
        net.latent_shape,
        net.grouping.tokens,
        net.patch_channels,
        config.model.conditioning_channels,
    )
    block = remat_module(FITBlock, "block", static_argnums=3)(
        groups=G,
        heads=(C // net.patch_head_channels, D // net.latent_head_channels),
        head_channels=(net.patch_head_channels, net.latent_head_channels),
        global_layers=net.global_layers,
        dropout=0.0,
        write_scale=1.0,
        dtype=jnp.bfloat16,
        attend=attention.for_mesh(mesh),
    )

    def on(spec, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    grouped, rows, everywhere = (
        PartitionSpec(meshes.BATCH_AXES, "group"),
        PartitionSpec(meshes.BATCH_AXES),
        PartitionSpec(),
    )
    tokens = on(grouped, jnp.float32, B, G * n, C), on(grouped, jnp.float32, B, G * m, D)
    conditions = on(rows, jnp.float32, B, TOKENS, E), on(rows, jnp.bool_, B, TOKENS)
    blank = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
    init = lambda: block.init(jax.random.key(0), blank(tokens), blank(conditions), False)["params"]
    params = jax.tree.map(lambda s: on(everywhere, jnp.bfloat16, *s.shape), jax.eval_shape(init))

    def total(tokens, params, conditions):
        with rules.activations_on(mesh):
            (patches, latents), _ = block.apply({"params": params}, tokens, conditions, False)
        return jnp.sum(patches**2) + jnp.sum(latents**2)

    split = NamedSharding(mesh, grouped)
    gradient = jax.jit(jax.grad(total), out_shardings=(split, split))
    program = compiler.compile_lowered(gradient.lower(tokens, params, conditions))
    return Compiled(
        hlo.collectives(program.as_text()),
        program.memory_analysis().temp_size_in_bytes,
        program.cost_analysis()["flops"],
        2 * G * m * D,
        2 * G * n * C,
    )


def assert_sends_latents_alone(split, config):
    assert {c.kind for c in split.collectives} == {"all-to-all"}
    assert max(c.bytes for c in split.collectives) == split.latents // 8 < split.patches // 8
    exchanges = sum(c.count for c in split.collectives)
    assert exchanges == 12 * config.model.fit.global_layers  # 4 forward, 4 again, 4 back


def test_groups_over_eight_chips_send_latents_alone():
    assert_sends_latents_alone(block_gradient(small(), data=2, group=8), small())


@pytest.mark.parametrize(("name", "shape"), [("up", (256, 1024)), ("down", (1024, 256))])
def test_a_gathered_kernel_lies_in_rows_as_it_is_multiplied(name, shape):
    """Gathered by its columns it would lie in columns, and be turned around to be multiplied."""
    devices = topology.devices("v5e-16")
    mesh = meshes.make_mesh(dict(data=1, fsdp=16, group=1, tensor=1), devices)
    on = lambda spec, *shape: jax.ShapeDtypeStruct(
        shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)
    )
    path = f"params/network/blocks/read/feed_forward/{name}/kernel"
    kernel = on(rules.spec_for(path, shape, mesh), *shape)
    layer = dense(shape[1], jnp.bfloat16, name, use_bias=False)

    @jax.jit
    def multiply(kernel, x):
        with rules.activations_on(mesh):
            return layer.apply({"params": {"kernel": kernel}}, x)

    x = on(PartitionSpec(meshes.BATCH_AXES), 16, 512, shape[0])
    text = compiler.compile_lowered(multiply.lower(kernel, x)).as_text() or ""
    (gathered,) = re.findall(r"= bf16\[(\d+,\d+)\]\{([\d,]+):[^=]* all-gather\(", text)
    assert gathered == (f"{shape[0]},{shape[1]}", "1,0")


@pytest.mark.slow
def test_a_block_of_the_upsampler_over_eight_chips_is_eight_times_smaller():
    split, whole = block_gradient(full(), data=2, group=8), block_gradient(full(), data=16)
    assert_sends_latents_alone(split, full())
    sent = sum(c.count * c.bytes for c in split.collectives)
    print(
        f"temporaries {whole.temporaries / 1e6:.0f} -> {split.temporaries / 1e6:.0f} MB, "
        f"{whole.flops / 1e12:.2f} -> {split.flops / 1e12:.2f} TFLOP, {sent / 1e6:.1f} MB sent"
    )
    assert whole.collectives == []
    assert sent < 278e6 / 2
    assert whole.flops / split.flops > 7.5
    assert whole.temporaries / split.temporaries > 7


@pytest.mark.parametrize(
    ("name", "chips"),
    [
        ("v5e-16", 16),
        ("v5e:4x4", 16),
        ("v5litepod-16", 16),
        ("v5p-128", 64),
        ("v6e-8", 8),
        ("v4:2x2x1", 4),
        ("tpu7x:2x2x1", 8),
    ],
)
def test_slices_have_their_chips(name, chips):
    assert len(topology.devices(name)) == chips


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e:3x3", ["v5e:3x3", "not divisible"]),
        ("v5p-12", ["no slice v5p-12", "v5p-16"]),
        ("v5litepod-12", ["no slice v5litepod-12", "v5litepod-16"]),
        ("v5e:2x2x2", ["not known"]),
        ("a100-8", ["not known", "v5e-N (or v5litepod-N)", "1, 4, 8, 16", "v5p:4x4x4"]),
    ],
)
def test_other_names_are_refused_with_those_that_there_are(name, words):
    with pytest.raises(ConfigError) as error:
        topology.devices(name)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_without_the_compiler_there_is_one_line_with_the_command(monkeypatch, tmp_path):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topology, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="needs its compiler, libtpu: pip install --no-deps"):
        topology.devices("v5e-4")


def arguments_of(program, cache=None):
    """Bytes of a chip: by the compiler, and by the shapes of the program's parts."""
    lowered = program.call.lower(*program.arguments)
    report = compiler.compile_or_load(lowered, program.mesh, topology.version(), cache)
    return report.arguments, sum(program.device_bytes.values())


@pytest.mark.slow
def test_arguments_are_the_parts_to_one_percent_from_fifty_megabytes_on():
    config = tiny.get_config()
    config.model.conditioning_channels = 128
    config.model.text_encoder.update(channels=128, heads=2, head_channels=64, hidden=256)
    config.model.fit.update(
        patch_channels=128,
        latent_channels=256,
        latents=128,
        patch_head_channels=64,
        latent_head_channels=64,
    )
    program = programs.planned(config, "train", topology.devices("v5e-1"))
    arguments, by_shape = arguments_of(program)
    assert 50e6 < by_shape < arguments < 1.01 * by_shape


@pytest.mark.slow
def test_the_training_step_of_the_demo_fits_a_slice_of_four_chips(plans):
    config = shapes.get_config()
    config.mesh.update(data=2, fsdp=2)
    slice = topology.devices("v5e-4")
    program = programs.planned(config, "train", slice)
    answer = estimate.estimate(program, slice, plans)
    text, tree = estimate_table.text(answer), estimate_table.tree(answer)
    memory = tree["hbm_bytes_per_chip"]
    assert tree["fits"] and "4 x TPU v5 lite, data 2 x fsdp 2: fits, 16.8 GB to spare" in text
    assert re.search(r"Predicted by the compiler \(jax [\d.]+, libtpu [\d.]+\)", text)
    assert memory["limit"] == int(15.75 * 2**30) and tree["parameters"] > 3_200_000
    assert memory["moments"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    assert memory["ema"] == memory["parameters"] == pytest.approx(2 * tree["parameters"], rel=0.02)
    parts = sum(memory.values()) - memory["limit"] - memory["total"]
    assert parts <= memory["total"] < 2 * parts
    arguments, by_shape = arguments_of(program, plans)
    assert by_shape < arguments < 1.02 * by_shape  # in whole tiles of 8 x 128: 1.5 %
    sent = {(each["kind"], tuple(each["axes"])) for each in tree["collectives"]}
    assert {kind for kind, _ in sent} >= {"all-gather", "all-reduce"}
    assert {axes for _, axes in sent} <= {("fsdp",), ("data",), ("data", "fsdp")}
    fast, slow = tree["predicted_step_seconds_range"]
    assert 0 < fast < tree["predicted_step_seconds"] == slow < 0.1 and 0 < tree["predicted_mfu"] < 1


def test_what_a_program_needs_too_much_is_read_from_the_compilers_refusal():
    refusal = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required (20.00G) exceeds available HBM (15.75G). HLO module: jit_step."
    )
    assert compiler.read_refusal(refusal) == (20 * 2**30, int(15.75 * 2**30))


def test_a_chip_has_the_memory_that_its_compiler_says():
    assert topology.memory(topology.devices("v5e-1")[0]) == int(15.75 * 2**30)


def on_one(slice, function, *shapes, dtype=jnp.float32):
    """`function` of arrays of these shapes as a program for the first chip of a slice."""
    mesh = meshes.make_mesh(dict.fromkeys(meshes.AXES, 1), topology.devices(slice)[:1])
    here = meshes.replicated(mesh)
    arguments = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=here) for shape in shapes)
    call = jax.jit(function, out_shardings=here, compiler_options=chips.options(mesh))
    return programs.PlannedProgram(
        call=call,
        arguments=arguments,
        resident={"parameters": arguments},
        inputs={},
        gradients=None,
        denoiser=mock.Mock(spec=Denoiser),
        mesh=mesh,
        videos=1,
        calls=1,
        model_flops=cost.flops(call, *arguments),
    )


def judged(program):
    return estimate.estimate(program, list(program.mesh.devices.flat))


GIB = 2**18, 1024  # as float32


def three_at_once(x, y):
    arrays = jax.lax.optimization_barrier((jnp.sin(x), jnp.cos(x), jnp.tanh(x)))
    return jnp.sum(arrays[0] * arrays[1] * arrays[2]) + jnp.sum(y)


@pytest.mark.parametrize(("x", "y"), [(4, 2), (2, 10), (3, 5)])
def test_a_program_that_does_not_fit_needs_what_a_larger_chip_says_it_needs(x, y):
    """Arguments of x and y GiB, and three more of x: 15.75 are too few, 31 are enough."""
    sizes = [(gib * GIB[0], GIB[1]) for gib in (x, y)]
    small, large = (judged(on_one(name, three_at_once, *sizes)) for name in ("v5e-1", "v6e-1"))
    assert (small.fits, large.fits, small.seconds, small.mfu) == (False, True, None, None)
    assert small.total == pytest.approx((4 * x + y) * 2**30, rel=0.01)
    assert small.total == pytest.approx(large.total, rel=0.01)
    assert "does not fit" in estimate_table.text(small)
    assert not estimate_table.tree(small)["fits"]


def product(*sizes, out=None):
    n, k, m = sizes
    return lambda a, b: jnp.dot(a, b, preferred_element_type=out), (n, k), (k, m)


# Of the roofline of products and memory, what the slow end is at most. Measured: docs/plan.md.
BENCHMARKS = {
    "4096 x 4096 x 4096": (product(4096, 4096, 4096), jnp.bfloat16, 2, 1.15),
    "4096 x 4096 x 4096 to float32": (
        product(4096, 4096, 4096, out=jnp.float32), jnp.bfloat16, 4, 1.15,
    ),
    "8192 x 4096 x 4096": (product(8192, 4096, 4096), jnp.bfloat16, 2, 1.15),
    "copy of 1.07 GB of float32": ((jnp.copy, GIB), jnp.float32, 4, 1.5),
    "1.07 GB of bfloat16 doubled": ((lambda x: 2 * x, (2 * GIB[0], GIB[1])), jnp.bfloat16, 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("slice", ["v5e-1", "v5p-8"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_band_holds_the_roofline_and_its_slow_end_is_near_it(slice, name):
    (function, *shapes), dtype, out, most = BENCHMARKS[name]
    program = on_one(slice, function, *shapes, dtype=dtype)
    chip = chips.tpu(program.mesh.devices.flat[0].device_kind)
    lowered = program.call.lower(*program.arguments)
    report = compiler.compile_or_load(lowered, program.mesh, "", None)
    rows, columns = shapes[0][0], shapes[-1][1]
    moved = trees.device_bytes(program.arguments) + out * rows * columns
    flops = 2 * rows * shapes[0][1] * columns if len(shapes) == 2 else 0
    prediction = predict.seconds(
        chip,
        instructions=hlo.instructions(report.text),
        kernels=[],
        collectives=[],
        num_chips=1,
        flops=program.flops,
        least_bytes=moved,
    )
    roofline = max(flops / chip.peak, moved / chip.hbm)
    print(
        f"{chip.name}  {name}: {1000 * roofline:.3f} ms, "
        f"slow {prediction.slow / roofline:.2f} times"
    )
    assert prediction.fast == pytest.approx(roofline, rel=0.1)
    assert 1 < prediction.slow / roofline < most
