"""cuDNN's attention: as the plain product where computed, and in programs lowered for a GPU.

No GPU is needed: what asks for one (cuDNN's version, the trial run) is replaced here, and JAX's own
implementation stands in for cuDNN's where numbers are compared.
"""

import re
from unittest import mock

import jax
import jax._src.cudnn.fused_attention_stablehlo as jax_cudnn  # whose check needs a GPU
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh

from launch import entry
from snapvideo_jax import build
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.parallel import attention, cudnn_attention
from snapvideo_jax.parallel.mesh import make_mesh
from snapvideo_jax.planner import cost

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


@pytest.fixture
def cudnn(monkeypatch):
    """JAX as it is where cuDNN is installed; nothing runs."""
    monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91_100)
    monkeypatch.setattr(cudnn_attention, "runs_on", lambda device: True)


@pytest.fixture
def stand_in(monkeypatch):
    """cuDNN's attention by JAX's own implementation; lists the lengths it was called with."""
    attend, seen = jax.nn.dot_product_attention, []

    def by_xla(q, k, v, *, implementation, key_value_seq_lengths):
        assert implementation == "cudnn"
        seen.append(key_value_seq_lengths)
        return attend(q, k, v, key_value_seq_lengths=key_value_seq_lengths, implementation="xla")

    monkeypatch.setattr(cudnn_attention.jax.nn, "dot_product_attention", by_xla)
    return attend, seen


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("batch", "masked"), [((3,), False), ((2, 3), True)], ids=["latents", "in groups, masked"]
)
def test_it_is_softmax_attention_and_so_is_its_gradient(stand_in, batch, masked):
    plain, _ = stand_in
    q, dout = normal(0, *batch, 5, 2, 8), normal(3, *batch, 5, 2, 8)
    k, v = (normal(seed, *batch, 12, 2, 8) for seed in (1, 2))
    mask = None
    if masked:  # hidden keys among the others, and in front of them
        mask = (jax.random.uniform(jax.random.key(4), (*batch, 12)) > 0.5).at[..., 7].set(True)
    flat = lambda x: x.reshape(-1, *x.shape[len(batch) :])
    allowed = None if mask is None else flat(mask)[:, None, None]
    expected = lambda q, k, v: plain(flat(q), flat(k), flat(v), mask=allowed).reshape(q.shape)
    actual = lambda q, k, v: cudnn_attention.attention(q, k, v, mask)

    def with_gradients(attend):
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(dout)

    both = jax.jit(lambda: (with_gradients(actual), with_gradients(expected)))()
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_keys_that_a_mask_hides_come_last_as_zeros_and_pass_no_gradient_on():
    keys = jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1)
    mask = jnp.array([[False, True, False, True]])
    moved = cudnn_attention.visible_first(keys, mask)
    np.testing.assert_array_equal(moved.ravel(), [2, 4, 0, 0])
    _, backward = jax.vjp(lambda x: cudnn_attention.visible_first(x, mask), keys)
    [slope] = backward(jnp.array([1.0, 2.0, jnp.nan, jnp.inf]).reshape(1, 4, 1, 1))
    np.testing.assert_array_equal(slope.ravel(), [0, 1, 0, 2])


def test_lengths_are_given_where_rows_or_columns_do_not_fill_tiles(stand_in):
    _, seen = stand_in
    tokens = lambda n: jax.ShapeDtypeStruct((2, n, 1, 8), jnp.bfloat16)
    for n, keys in ((128, 256), (128, 320), (64, 128)):
        jax.eval_shape(cudnn_attention.attention, tokens(n), tokens(keys), tokens(keys))
    assert [lengths is None for lengths in seen] == [True, False, False]


TOKENS = (4, 64, 2, 48)


@pytest.mark.parametrize(
    ("fits", "shape", "dtype"),
    [
        (True, TOKENS, jnp.bfloat16),
        (True, (4, 64, 2, 128), jnp.float16),
        (True, (2, 8, 63, 2, 64), jnp.bfloat16),
        (False, TOKENS, jnp.float32),
        (False, (4, 64, 2, 44), jnp.bfloat16),
        (False, (4, 64, 2, 136), jnp.bfloat16),
        (False, (65_536, 16, 2, 64), jnp.bfloat16),
        (False, (*export.symbolic_shape("B"), 64, 2, 48), jnp.bfloat16),
    ],
    ids=str,
)
def test_it_takes_halves_with_heads_of_whole_eights(fits, shape, dtype):
    tokens = jax.ShapeDtypeStruct(shape, dtype)
    assert cudnn_attention.fits(tokens, tokens) == fits


def mesh_of(**sizes):
    sizes = dict(data=1, fsdp=1, group=1, tensor=1) | sizes
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


def calls(lowered):
    """Returns how many of cuDNN's custom calls a lowered program has, by name."""
    names = re.findall(r"__cudnn\$\w+", lowered.as_text())
    return {name: names.count(name) for name in names}


def lower(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


# Queries, keys, whether a mask hides some: of FIT 500M, 8 videos (paper Table 8).
FIT_500M = {
    "conditions": ((8, 512, 16, 64), (8, 132, 16, 64), True),
    "read": ((8, 8, 64, 16, 48), (8, 8, 320, 16, 48), False),
    "global layers": ((8, 512, 16, 64), (8, 512, 16, 64), False),
    "write": ((8, 8, 320, 16, 48), (8, 8, 64, 16, 48), False),
}


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("sizes", [{}, dict(data=1, fsdp=2, group=2, tensor=2)], ids=str)
@pytest.mark.parametrize(("queries", "keys", "masked"), FIT_500M.values(), ids=FIT_500M)
def test_a_gradient_lowered_for_a_gpu_calls_cudnn(queries, keys, masked, sizes):
    attend = attention.for_mesh(mesh_of(**sizes))
    half = lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    mask = [jax.ShapeDtypeStruct(keys[:2], jnp.bool_)] if masked else []
    total = lambda *arguments: jnp.sum(attend(*arguments).astype(jnp.float32))
    gradient = jax.grad(total, (0, 1, 2))
    arguments = half(queries), half(keys), half(keys), *mask
    assert calls(lower(gradient, *arguments)) == {FORWARD: 1, BACKWARD: 1}


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("shape, dtype", [(TOKENS, jnp.float32), ((4, 64, 2, 44), jnp.bfloat16)])
def test_what_does_not_fit_is_lowered_as_the_plain_product(shape, dtype):
    tokens = jax.ShapeDtypeStruct(shape, dtype)
    attend = attention.for_mesh(mesh_of())
    assert calls(lower(attend, tokens, tokens, tokens)) == {}
    assert "dot_general" in lower(attend, tokens, tokens, tokens).as_text()


@pytest.mark.usefixtures("cudnn")
def test_a_program_for_any_batch_size_has_none():
    tokens = jax.ShapeDtypeStruct((*export.symbolic_shape("B"), 64, 2, 48), jnp.bfloat16)
    attend = jax.jit(attention.for_mesh(mesh_of()))
    text = export.export(attend, platforms=("cuda",))(tokens, tokens, tokens).mlir_module()
    assert "__cudnn" not in text


def fit_step(attention_choice, **sizes):
    """The training step of FIT 500M with one block of one global layer, lowered for a GPU."""
    config = entry.load_config("configs/fit_500m.py")
    config.model.fit.update(blocks=1, global_layers=1, unroll=1)
    config.model.attention = attention_choice
    config.mesh.update(dict(data=1, fsdp=1, group=1, tensor=1) | sizes)
    config.training.batch_size = 8
    mesh = mesh_of(**sizes)
    program = build.train_program(config, 256, list(mesh.devices.flat))
    traced = program.step.trace(program.abstract_state, program.abstract_batch)
    return traced.lower(lowering_platforms=("cuda",))


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    "sizes",
    [
        dict(data=1, fsdp=2, group=2, tensor=2),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(dict(data=2, fsdp=4), marks=pytest.mark.slow),
        pytest.param(dict(group=8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_step_of_fit_calls_it_in_every_layer(sizes):
    layers = 4  # conditions, read, one global layer, write
    # Forward in the pass that makes latents, in the pass that has a gradient, and again in the
    # backward pass, which reads products from memory but not cuDNN's sums.
    assert calls(fit_step("fastest", **sizes)) == {FORWARD: 3 * layers, BACKWARD: layers}


@pytest.mark.slow
@pytest.mark.usefixtures("cudnn")
def test_with_plain_attention_a_training_step_does_not_call_it():
    assert calls(fit_step("plain")) == {}


@pytest.fixture
def gpu(monkeypatch):
    """A device that says it is a GPU, whose arrays lie on the CPU."""
    monkeypatch.setattr(jax, "device_put", lambda array, device: array)
    return mock.Mock(spec=jax.Device, platform="gpu")


def test_a_gpu_without_cudnn_attends_by_the_plain_product(gpu):
    assert not cudnn_attention.runs_on(gpu)  # JAX finds no cuDNN here
    mesh = mock.Mock(spec=Mesh, size=1, local_devices=[gpu], devices=np.array([gpu]))
    assert attention.for_mesh(mesh) is dot_product_attention


def test_a_gpu_that_cudnn_does_not_know_attends_by_the_plain_product(gpu, monkeypatch):
    def refuse(*tokens, **settings):
        raise jax.errors.JaxRuntimeError("INTERNAL: no engine configuration found")

    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
    assert not cudnn_attention.runs_on(gpu)


def test_a_cpu_is_not_tried():
    assert not cudnn_attention.runs_on(jax.devices()[0])
    assert attention.fastest_kernel(mesh_of(data=8)) is attention.PLAIN


@pytest.mark.usefixtures("cudnn")
def test_its_cost_counts_two_products_of_every_head_and_five_in_the_gradient():
    q = jax.ShapeDtypeStruct((3, 256, 4, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((3, 128, 4, 64), jnp.bfloat16)
    product = 2 * 3 * 4 * 256 * 128 * 64
    assert cost.flops(cudnn_attention.attention, q, k, k) == 2 * product
    gradient = jax.grad(lambda *qkv: jnp.sum(cudnn_attention.attention(*qkv)), (0, 1, 2))
    assert cost.flops(gradient, q, k, k) == (2 + 5) * product
