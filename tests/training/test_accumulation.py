"""Micro-batches: the loss and the gradient of the whole batch, in less memory."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from snapvideo_jax import build, keys, trees
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.models.conditioning import Conditions
from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.training import step
from snapvideo_jax.training.state import TrainState
from tests import tiny

VOCABULARY = 20
STREAMS = keys.streams(0, 0, step.STREAMS)


def config():
    made = tiny.get_config()
    made.model.dropout = 0.0
    made.training.batch_size = 32
    return made


CONFIG = config()
DENOISER = build.denoiser(CONFIG, VOCABULARY, build.counting_mesh())
OBJECTIVE = build.objective(CONFIG)


def loss_and_gradient(params, batch, accumulate, denoiser=DENOISER, objective=OBJECTIVE):
    return step.loss_and_gradient(params, batch, STREAMS, denoiser, objective, accumulate)


@pytest.fixture(scope="module")
def params():
    """Random numbers everywhere, so that no path through the network is closed."""
    rng = np.random.default_rng(1)
    blank = build.blank_batch(CONFIG)
    shapes = jax.eval_shape(lambda: DENOISER.init(jax.random.key(0), blank))
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype("f"), shapes)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    shapes = build.abstract_batch(CONFIG)
    n, length = shapes["text_ids"].shape
    return {
        "video": rng.integers(0, 256, shapes["video"].shape, np.uint8),
        "frame_interval": np.float32([0.25, 0] * (n // 2)),
        "source_size": rng.integers(16, 99, (n, 2), np.int32),
        "text_ids": rng.integers(2, VOCABULARY, (n, length), np.int32),
        "text_mask": np.arange(length) < rng.integers(1, length, (n, 1)),
    }


@pytest.fixture(scope="module")
def compiled(params, batch):
    """The program of 1 and of 4 micro-batches."""
    program = jax.jit(loss_and_gradient, static_argnums=2)
    return {k: program.lower(params, batch, k).compile() for k in (1, 4)}


@pytest.fixture(scope="module")
def whole(compiled, params, batch):
    return compiled[1](params, batch)


def assert_same(found, expected):
    """To 1e-6 of each leaf's largest number, or of 0.1 where that is smaller."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(0.1, np.abs(b).max()))


def test_micro_batches_have_the_loss_and_the_gradient_of_the_whole(compiled, whole, params, batch):
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole[1]):
        name = trees.path_name(path)
        assert name.endswith("k/bias") or np.abs(leaf).max() > 1e-4, name  # softmax ignores those
    assert_same(compiled[4](params, batch), whole)


def test_memory_falls_with_the_size_of_a_micro_batch(compiled):
    one, four = (compiled[k].memory_analysis().temp_size_in_bytes for k in (1, 4))
    assert four < one / 2


def test_every_device_deals_its_own_rows_to_all_micro_batches():
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, group=1, tensor=2), jax.devices())
    rows = jax.device_put(jnp.arange(24).reshape(24, 1), meshes.batch_sharding(mesh))
    program = jax.jit(functools.partial(step.micro_batches, number=3)).lower(rows).compile()
    micro = program(rows)
    np.testing.assert_array_equal(micro[1, :, 0], np.arange(1, 24, 3))
    assert not any(word in program.as_text() for word in ("all-", "collective", "reduce-scatter"))
    for shard in micro.addressable_shards:
        assert shard.data.shape == (3, 2, 1)
        assert set(shard.data.ravel().tolist()) <= set(rows_of(shard.device, rows))


def rows_of(device, rows):
    (shard,) = (shard for shard in rows.addressable_shards if shard.device == device)
    return shard.data.ravel().tolist()


def stand_in(answer, dtype=jnp.float32):
    """A denoiser of blank videos with F = answer(params in dtype, x_sigma, dropout keys)."""

    def given(batch):
        n = len(batch["video"])
        text, mask = jnp.ones((n, 1, 1)), jnp.ones((n, 1), bool)
        return Conditions(jnp.zeros(n), jnp.zeros((n, 2)), text, mask)

    return mock.Mock(
        spec=Denoiser,
        encode=lambda video: jnp.zeros((len(video), 1, 8, 8, 3)),
        cast_kernels=lambda params: params.astype(dtype),
        conditions=lambda params, batch: given(batch),
        low_res_size=None,
        self_conditioned_F=lambda params, x_sigma, log_sigma, dropout_keys, **_: answer(
            params, x_sigma, dropout_keys
        ),
        sigma_data=1.0,
        sigma_in=1.0,
        image_sigma_in=0.0,
        sigma_in_of=lambda frame_interval: 1.0,
    )


def blank(n):
    return {"video": jnp.zeros((n, 1, 8, 8, 3), jnp.uint8), "frame_interval": jnp.zeros(n)}


@pytest.mark.parametrize("of", [0, 1], ids=["first pass", "second pass"])
def test_micro_batches_have_masks_of_their_own(of):
    """A weight that half of the masks drop is dropped by two of them in a quarter of the cases."""
    mask = lambda keys: jax.random.bernoulli(keys[of], 0.5, (8, 8, 3))
    kept = lambda w, keys: jnp.where(mask(keys), w, 0)[None, None]
    denoiser = stand_in(lambda w, x_sigma, keys: kept(w, keys) + 0 * x_sigma)
    for accumulate, dropped in ((1, 1 / 2), (2, 1 / 4), (4, 1 / 16)):
        _, grad = loss_and_gradient(jnp.ones((8, 8, 3)), blank(4), accumulate, denoiser)
        assert np.mean(np.asarray(grad) == 0) == pytest.approx(dropped, abs=0.08)


def test_gradients_of_kernels_in_bfloat16_are_added_in_float32():
    """Five hundred numbers of one size do not add up in bfloat16, which stops at 256 of them."""
    seen = []

    def answer(w, x_sigma, keys):
        seen.append(w.dtype)
        return w.astype(jnp.float32) * jnp.ones_like(x_sigma)

    of = lambda dtype, k: loss_and_gradient(
        jnp.float32(100), blank(512), k, stand_in(answer, dtype)
    )[1]
    expected, once, found = of(jnp.float32, 1), of(jnp.bfloat16, 1), of(jnp.bfloat16, 512)
    assert seen == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    assert once.dtype == found.dtype == jnp.float32
    assert float(once) == pytest.approx(float(expected), rel=0.01)
    assert float(found) == pytest.approx(float(expected), rel=0.01)


def test_one_micro_batch_is_the_plain_gradient_without_a_loop():
    denoiser = stand_in(lambda w, x_sigma, keys: w * x_sigma)
    program = lambda k: lambda w, batch: loss_and_gradient(w, batch, k, denoiser)
    traced = {k: str(jax.make_jaxpr(program(k))(jnp.float32(1), blank(4))) for k in (1, 2)}
    assert "scan[" in traced[2] and "scan[" not in traced[1]


def test_micro_batches_split_over_four_devices_have_the_gradient_of_one():
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, group=1, tensor=1), jax.devices()[:4])
    denoiser = stand_in(lambda w, x_sigma, keys: jnp.tanh(x_sigma * w[None, None]))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    program = jax.jit(
        lambda w, batch: loss_and_gradient(w, batch, 3, denoiser),
        in_shardings=(split, meshes.batch_sharding(mesh)),
        out_shardings=(meshes.replicated(mesh), split),
    )
    w = jnp.linspace(-1, 1, 8 * 8 * 3).reshape(8, 8, 3)
    assert_same(program(w, blank(12)), loss_and_gradient(w, blank(12), 1, denoiser))


def test_a_step_of_micro_batches_ends_where_a_whole_step_ends():
    sizes = []

    def answer(w, x_sigma, keys):
        sizes.append(len(x_sigma))
        return w * x_sigma

    w, optimizer = jnp.float32(1), optax.sgd(0.1)
    state = TrainState(jnp.int32(0), w, w, optimizer.init(w))
    how = dict(denoiser=stand_in(answer), optimizer=optimizer, objective=OBJECTIVE)
    how |= dict(ema_half_life=4.0, ema_ramp=0.05, seed=0)
    ends = [step.train_step(state, blank(6), **how, accumulate=k) for k in (1, 3)]
    assert sizes == [6, 2]
    assert float(ends[0][0].params) != 1
    assert_same(ends[1], ends[0])
