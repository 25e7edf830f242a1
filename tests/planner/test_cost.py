"""The counter of FLOPs against closed forms, and the published networks against the paper's sizes.

A convolution of ones with ones sums to the number of its products, which makes it its own oracle.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from snapvideo_jax.models.conditioning import Conditions
from snapvideo_jax.models.fit import FIT
from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.models.patches import Grouping
from snapvideo_jax.parallel.mesh import make_mesh
from snapvideo_jax.planner import cost


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


X, W = of(4, 8), of(8, 8)
MATMUL = 2 * 4 * 8 * 8


def matmul(x, w):
    return x @ w


def loss(function):
    """A scalar whose gradient needs `function` once and both its gradients."""
    return lambda *args: jnp.sum(jnp.square(function(*args)))


def test_parameters_are_the_elements_of_all_leaves():
    assert cost.parameters({"a": of(3, 4), "b": [of(), of(0, 5), of(2)]}) == 12 + 1 + 0 + 2


def test_a_matrix_product_is_two_operations_a_multiply_add():
    assert cost.flops(matmul, X, W) == MATMUL


def test_a_batched_einsum_counts_every_letter_once():
    product = lambda q, k: jnp.einsum("bnad,bkad->bank", q, k)
    assert cost.flops(product, of(2, 3, 5, 7), of(2, 11, 5, 7)) == 2 * 2 * 3 * 11 * 5 * 7


def test_attention_is_two_products_of_queries_with_keys():
    q, k = of(2, 16, 3, 8), of(2, 5, 3, 8)
    assert cost.flops(jax.nn.dot_product_attention, q, k, k) == 2 * (2 * 2 * 16 * 5 * 3 * 8)


def test_element_wise_work_is_not_counted():
    assert cost.flops(lambda x: jax.nn.softmax(jnp.sin(x)) * x, X) == 0


CONVOLUTIONS = [
    dict(window_strides=(1, 1), padding="VALID"),
    dict(window_strides=(1, 1), padding="SAME"),
    dict(window_strides=(2, 3), padding=[(2, 0), (1, 3)]),
    dict(window_strides=(2, 1), padding=[(-1, 2), (0, -2)], rhs_dilation=(2, 1)),
    dict(window_strides=(1, 2), padding=[(2, 1), (1, 2)], lhs_dilation=(2, 3)),
    dict(window_strides=(2, 2), padding="SAME", feature_group_count=3),
    dict(window_strides=(1, 1), padding="SAME", batch_group_count=2),
]


@pytest.mark.parametrize("how", CONVOLUTIONS, ids=str)
def test_a_convolution_counts_the_products_of_what_is_there(how):
    x = jnp.ones((4, 8, 5, 6))
    w = jnp.ones((3, 3, 6 // how.get("feature_group_count", 1), 12))
    convolve = functools.partial(
        lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how
    )
    assert cost.flops(convolve, x, w) == 2 * int(convolve(x, w).sum())


def test_a_convolution_without_padding_has_the_usual_closed_form():
    convolve = lambda x, w: lax.conv(x, w, (1, 1), "VALID")
    assert cost.flops(convolve, of(2, 3, 9, 7), of(5, 3, 3, 3)) == 2 * 2 * 5 * (7 * 5) * 3 * 9


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_convolution_and_its_two_gradients_cost_the_same(strides):
    convolve = lambda x, w: lax.conv(x, w, strides, "SAME")
    args = of(2, 3, 9, 8), of(5, 3, 3, 3)
    gradient = jax.grad(loss(convolve), (0, 1))
    assert cost.flops(gradient, *args) == 3 * cost.flops(convolve, *args)


def test_a_gradient_is_three_times_the_forward_pass():
    assert cost.flops(jax.grad(loss(matmul), (0, 1)), X, W) == 3 * MATMUL


def test_rematerialization_adds_a_forward_pass():
    function = jax.checkpoint(lambda x, w: jnp.sin(x @ w))
    assert cost.flops(function, X, W) == MATMUL
    assert cost.flops(jax.grad(loss(function), (0, 1)), X, W) == 4 * MATMUL


def repeat(times, function):
    """x -> function(x, w) `times` times, as a scan."""
    return lambda x, w: lax.scan(lambda x, _: (function(x, w), None), x, length=times)[0]


def test_a_scan_counts_its_body_at_every_step():
    assert cost.flops(repeat(5, matmul), X, W) == 5 * MATMUL


def test_nested_scans_multiply():
    assert cost.flops(repeat(3, repeat(5, matmul)), X, W) == 15 * MATMUL


def test_the_gradient_of_a_scan_is_three_times_its_forward_pass():
    assert cost.flops(jax.grad(loss(repeat(5, matmul)), (0, 1)), X, W) == 15 * MATMUL


def test_a_loop_with_static_bounds_is_counted_and_one_without_is_refused():
    def loop(x, w, times):
        return lax.fori_loop(0, times, lambda _, x: x @ w, x)

    assert cost.flops(functools.partial(loop, times=6), X, W) == 6 * MATMUL
    with pytest.raises(ValueError, match="trip count is known only at run time"):
        cost.flops(loop, X, W, of(dtype=jnp.int32))


def test_a_loop_that_computes_no_products_needs_no_trip_count():
    doubled = lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, x)
    assert cost.flops(lambda x, w: doubled(x) @ w, X, W) == MATMUL


def test_of_the_branches_of_a_cond_the_largest_counts():
    branches = [matmul, lambda x, w: x, lambda x, w: x @ w @ w]
    switch = lambda i, x, w: lax.switch(i, branches, x, w)
    assert cost.flops(switch, of(dtype=jnp.int32), X, W) == 2 * MATMUL


def test_calls_count_what_they_hold():
    with_jvp = jax.custom_jvp(matmul)
    with_jvp.defjvp(lambda primals, tangents: (matmul(*primals), tangents[0]))
    with_vjp = jax.custom_vjp(matmul)
    with_vjp.defvjp(lambda x, w: (x @ w, w), lambda w, g: (g @ w.T, w))
    for function in (jax.jit(matmul), with_jvp, with_vjp):
        assert cost.flops(function, X, W) == MATMUL
    assert cost.flops(jax.grad(loss(with_vjp), 0), X, W) == 2 * MATMUL  # its own rules are used


def test_a_primitive_that_hides_products_is_refused():
    solve = lambda a, b: lax.custom_linear_solve(
        lambda v: a @ v, b, lambda _, v: a @ v, symmetric=True
    )
    with pytest.raises(ValueError, match="cannot count the products inside .*linear_solve"):
        cost.flops(solve, W, of(8))


@pytest.mark.parametrize(("axes", "devices"), [({"data"}, 4), ({"data", "tensor"}, 8)])
def test_shard_map_counts_all_its_devices(axes, devices):
    mesh = make_mesh(dict(data=4, fsdp=1, group=1, tensor=2), jax.devices())
    everywhere = PartitionSpec()
    sharded = jax.shard_map(
        matmul,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), everywhere),
        out_specs=PartitionSpec("data"),
        axis_names=axes,
    )
    assert cost.flops(sharded, of(16, 8), W) == devices * MATMUL


def kernel(estimate):
    def body(x, w, out):
        out[...] = x[...] @ w[...]

    return pl.pallas_call(body, out_shape=X, cost_estimate=estimate)


def test_a_pallas_kernel_counts_its_estimate():
    estimate = pl.CostEstimate(flops=77, transcendentals=5, bytes_accessed=3)
    assert cost.flops(kernel(estimate), X, W) == 77


def test_a_pallas_kernel_without_an_estimate_is_refused():
    with pytest.raises(ValueError, match="Pallas kernel 'body' has no cost"):
        cost.flops(kernel(None), X, W)


# Columns of Table 8: patch channels, latents, latent channels, head channels of both, conditioning.
FITS = {
    "500M": ((768, 512, 1024, 48, 64, 768), 500e6, 713e9),
    "3.9B": ((1024, 768, 3072, 64, 128, 1024), 3.9e9, 6467e9),
}


@pytest.mark.parametrize("name", FITS)
def test_fit_has_the_size_and_the_operations_of_table_8(name):
    """A forward pass of a 16 x 64 x 40 video with 128 text tokens: 713 and 6467 GFLOP.

    That is the compiler's count, in which element-wise work has a share of 1.4 % and 0.5 %.
    """
    (patch, latents, latent, patch_head, latent_head, conditioning), size, operations = FITS[name]
    net = FIT(
        video=(16, 40, 64),
        grouping=Grouping(4, (16, 5, 4)),
        patch_channels=patch,
        latents=latents,
        latent_channels=latent,
        blocks=6,
        global_layers=4,
        patch_head_channels=patch_head,
        latent_head_channels=latent_head,
        conditioning_channels=conditioning,
        attend=dot_product_attention,
    )
    text, mask = of(1, 128, 1024), of(1, 128, dtype=jnp.bool_)
    conditions = Conditions(of(1), of(1, 2, dtype=jnp.int32), text, mask)
    args = of(1, *net.video, 3), of(1), conditions, of(1, *net.latent_shape)
    params = jax.eval_shape(net.init, jax.random.key(0), *args)
    assert cost.parameters(params) == pytest.approx(size, rel=0.02)
    assert cost.flops(net.apply, params, *args) == pytest.approx(operations, rel=0.02)
