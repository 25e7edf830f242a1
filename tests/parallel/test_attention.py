"""The kernel of the devices gives what the plain dot product gives, on every mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.models.layers import dot_product_attention
from snapvideo_jax.parallel import attention, pallas_attention
from snapvideo_jax.parallel.mesh import make_mesh


def fake(attend):
    """A kernel that fits where the TPU's does, and attends by `attend`."""
    return attention.Kernel("fake", attend, pallas_attention.fits)


def mesh_of(**sizes):
    return make_mesh(dict(data=1, fsdp=1, group=1, tensor=1) | sizes, jax.devices())


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def qkv(*batch, n=8, k=256, heads=2, width=8):
    sizes = ((n, 0), (k, 1), (k, 2))
    return tuple(normal(seed, *batch, rows, heads, width) for rows, seed in sizes)


@pytest.mark.parametrize("batch", [(4,), (4, 2)], ids=["latents", "in groups"])
@pytest.mark.parametrize(
    "sizes",
    [dict(data=2, fsdp=2, group=2), dict(fsdp=2, group=2, tensor=2), dict(data=4, tensor=2)],
)
def test_split_over_devices_it_is_the_same_attention(batch, sizes):
    seen = []

    def kernel(q, k, v):
        seen.append((q.shape, k.shape))
        return dot_product_attention(q, k, v)

    split = jax.jit(functools.partial(attention.attend, kernel=fake(kernel), mesh=mesh_of(**sizes)))
    q, k, v = qkv(*batch, n=256, heads=4)
    np.testing.assert_allclose(split(q, k, v), dot_product_attention(q, k, v), atol=1e-6)
    examples = 4 // (sizes.get("data", 1) * sizes.get("fsdp", 1))
    groups, heads = sizes.get("group", 1), 4 // sizes.get("tensor", 1)
    local = (examples, 256, heads // groups, 8)  # all latents, some heads
    if len(batch) == 2:
        local = (examples, 2 // groups, 256, heads, 8)  # all of some groups
    assert seen == [(local, local)]


def sent(split, *args):
    """Returns the names of the collectives in the compiled program."""
    text = split.lower(*args).compile().as_text()
    names = r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    return sorted(re.findall(names, text))


def test_within_groups_nothing_is_sent():
    mesh = mesh_of(group=8)
    spec = attention.specs(5, False).q
    args = jax.device_put(qkv(2, 8, k=8), jax.sharding.NamedSharding(mesh, spec))
    attend = functools.partial(attention.attend, kernel=attention.PLAIN, mesh=mesh)
    assert sent(jax.jit(attend), *args) == []
    assert sent(jax.jit(dot_product_attention), *args) != []  # as the compiler does it alone


def test_heads_that_do_not_divide_over_the_groups_get_all_keys():
    seen = []

    def kernel(q, k, v):
        seen.append((q.shape, k.shape))
        return dot_product_attention(q, k, v)

    mesh = mesh_of(data=4, group=2)
    split = jax.jit(functools.partial(attention.attend, kernel=fake(kernel), mesh=mesh))
    q, k, v = qkv(4, n=256, heads=3)
    np.testing.assert_allclose(split(q, k, v), dot_product_attention(q, k, v), atol=1e-6)
    assert seen == [((1, 128, 3, 8), (1, 256, 3, 8))]


@pytest.mark.parametrize(
    ("why", "shape", "keys"),
    [
        ("few scores", (4, 8, 2, 8), 256),
        ("more keys than fit in fast memory", (4, 8, 2, 8), 16384),
        ("heads of an odd width", (4, 32, 2, 4), 256),
        ("examples that do not split", (3, 32, 2, 8), 256),
        ("queries that do not split", (4, 31, 2, 8), 256),
    ],
)
def test_where_the_kernel_does_not_fit_the_plain_product_is_used(why, shape, keys):
    def kernel(q, k, v):
        raise AssertionError(why)

    rows = (shape[0], keys, *shape[2:])
    q, (k, v) = normal(0, *shape), (normal(i, *rows) for i in (1, 2))
    out = attention.attend(q, k, v, kernel=fake(kernel), mesh=mesh_of(data=2, group=4))
    np.testing.assert_allclose(out, dot_product_attention(q, k, v), atol=1e-6)


def test_keys_with_a_mask_are_on_every_device_of_an_example():
    q, k, v = qkv(4, n=256)
    mask = jnp.arange(256)[None] < jnp.arange(1, 5)[:, None] * 50
    seen = []

    def kernel(q, k, v, mask):
        seen.append((q.shape, k.shape, mask.shape))
        return dot_product_attention(q, k, v, mask)

    masked = attention.attend(q, k, v, mask, kernel=fake(kernel), mesh=mesh_of(data=2, group=4))
    np.testing.assert_allclose(masked, dot_product_attention(q, k, v, mask), atol=1e-6)
    assert seen == [((2, 64, 2, 8), (2, 256, 2, 8), (2, 256))]


def make_mesh_of_one():
    return make_mesh(dict(data=1, fsdp=1, group=1, tensor=1), jax.devices()[:1])


def test_on_one_device_that_is_no_tpu_it_is_the_plain_product():
    assert attention.for_mesh(make_mesh_of_one()) is dot_product_attention
