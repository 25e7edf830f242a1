"""The loss, and the training step on one device and on eight."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax import build, keys
from snapvideo_jax.denoiser import Denoiser
from snapvideo_jax.diffusion import edm
from snapvideo_jax.models.conditioning import Conditions
from snapvideo_jax.training import step
from snapvideo_jax.trees import path_name
from tests import tiny

VOCABULARY = 20
QUICKLY = {"xla_backend_optimization_level": 0}  # a third of the time to compile
OBJECTIVE = step.Objective(P_mean=-1.2, P_std=1.2, label_dropout=0.1, self_conditioning=0.9)


def config(data, fsdp, **model):
    made = tiny.get_config()
    made.mesh.update(data=data, fsdp=fsdp)
    made.model.update(model)
    return made


def batch_of(made):
    """Random pixels and text for one step."""
    rng = np.random.default_rng(0)
    shapes = build.abstract_batch(made)
    video, ids = shapes["video"].shape, shapes["text_ids"].shape
    return {
        "video": rng.integers(0, 256, video, np.uint8),
        "frame_interval": np.float32([0.25, 0] * (video[0] // 2)),
        "source_size": np.full((video[0], 2), 16, np.int32),
        "text_ids": rng.integers(2, VOCABULARY, ids, np.int32),
        "text_mask": np.arange(ids[1]) < rng.integers(1, ids[1], (ids[0], 1)),
    }


BATCH = batch_of(tiny.get_config())


class Run:
    """A compiled step and copies of states, for steps give their input away."""

    def __init__(self, program):
        self.program = program
        self.lowered = program.step.lower(program.abstract_state, BATCH)
        self._step = self.lowered.compile(compiler_options=QUICKLY)

    def step(self, state):
        """(state, metrics) of one step from a copy of `state`, wherever that lies."""
        place = lambda leaf, like: jax.device_put(np.asarray(leaf), like.sharding)
        return self._step(jax.tree.map(place, state, self.program.abstract_state), BATCH)

    def five(self, state):
        """Metrics of five steps, and the last state."""
        history = []
        for _ in range(5):
            state, metrics = self.step(state)
            history.append({name: float(value) for name, value in metrics.items()})
        return history, state


@pytest.fixture(scope="module")
def eight():
    """The step on data 2 x fsdp 4."""
    return Run(build.train_program(config(data=2, fsdp=4), VOCABULARY))


def test_parts_of_the_step_have_scopes_for_a_profile(eight):
    lowered = eight.lowered.as_text(debug_info=True)
    for scope in ("loss/jvp(FIT)", "loss/jvp(T5Encoder)", "optimizer/sqrt", "ema/sub"):
        assert f"jit(step)/{scope}" in lowered, scope


@pytest.fixture(scope="module")
def start(eight):
    """The initial state, made sharded."""
    return eight.program.init.lower().compile(compiler_options=QUICKLY)()


@pytest.fixture(scope="module")
def later(eight, start):
    """Metrics of five steps on eight devices, and the last state."""
    return eight.five(start)


@pytest.fixture(scope="module")
def one(start):
    """Metrics of the same five steps on one device, and the last state."""
    program = build.train_program(config(data=1, fsdp=1), VOCABULARY, jax.devices()[:1])
    return Run(program).five(start)


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_eight_devices_have_the_losses_of_one(later, one):
    for sharded, alone in zip(later[0], one[0], strict=True):
        assert sharded["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert sharded["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


def test_parameters_moments_and_ema_are_split_over_fsdp(later):
    _, state = later
    assert int(state.step) == 5
    trees = {"params": state.params, "ema": state.ema, "moments": state.opt_state}
    for name, tree in trees.items():
        leaves = jax.tree.leaves(tree)
        split = [leaf for leaf in leaves if "fsdp" in str(leaf.sharding.spec)]
        assert sum(leaf.size for leaf in split) > 0.9 * sum(leaf.size for leaf in leaves), name
        for leaf in split:
            axis = ["fsdp" in str(axes) for axes in leaf.sharding.spec].index(True)
            expected = leaf.shape[:axis] + (leaf.shape[axis] // 4,) + leaf.shape[axis + 1 :]
            assert {shard.data.shape for shard in leaf.addressable_shards} == {expected}, name
            assert len(leaf.addressable_shards) == 8


def test_a_step_repeats_itself_bit_for_bit(eight, start):
    same(eight.step(start), eight.step(start))


def test_each_step_has_its_own_noise(eight, start):
    (_, first), (_, second) = (eight.step(start.replace(step=jnp.int32(i))) for i in (0, 1))
    assert float(first["loss"]) != float(second["loss"])


def test_five_steps_move_every_parameter_but_the_biases_of_keys(start, later):
    moved = lambda old, new: (np.asarray(old) != new).any()
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(moved, start.params, later[1].params))
    changed = {path_name(path): change for path, change in leaves}
    assert changed == {name: not name.endswith("/k/bias") for name in changed}


def test_the_ema_copies_at_the_first_step_and_lags_by_its_half_life_later(eight, start, later):
    first, metrics = eight.step(start)
    assert int(metrics["skipped"]) == 0 and int(first.step) == 1
    same(first.ema, first.params)
    aged = later[1].replace(step=jnp.int32(1000))
    after, _ = eight.step(aged)
    beta = 0.5 ** (1 / 4)  # tiny's half-life of 4 steps, the ramp long over
    lagging = jax.tree.map(lambda old, new: beta * old + (1 - beta) * new, aged.ema, after.params)
    close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, after.ema, lagging)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counter(eight, later):
    _, state = later
    broken = jax.tree.map(np.asarray, state.params)
    broken["network"]["head"]["bias"] = np.full_like(broken["network"]["head"]["bias"], np.inf)
    before = state.replace(params=broken)
    after, metrics = eight.step(before)
    assert int(metrics["skipped"]) == 1 and not np.isfinite(metrics["loss"])
    assert int(after.step) == int(before.step) + 1
    same(after.replace(step=before.step), before)


def test_bfloat16_stays_within_two_hundredths_of_float32(start, one):
    half = build.train_program(config(1, 1, dtype="bfloat16"), VOCABULARY, jax.devices()[:1])
    state, metrics = Run(half).step(start)
    assert float(metrics["loss"]) == pytest.approx(one[0][0]["loss"], rel=0.02)
    assert float(metrics["loss"]) != one[0][0]["loss"]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def loss_with(answer, n=4096, si=4.0):
    """(loss, what the denoiser was asked) on white data, where F = answer(x, x_sigma, sigma)."""
    x = jax.random.normal(jax.random.key(9), (n, 1, 2, 2, 3))
    text, mask = jnp.ones((n, 1, 1)), jnp.ones((n, 1), bool)
    asked = {}

    def self_conditioned_F(params, x_sigma, log_sigma, conditions, keep_latents, dropout_keys):
        asked.update(
            log_sigma=log_sigma, passes=conditions, keep=keep_latents, dropout=dropout_keys
        )
        return answer(x, x_sigma, jnp.exp(log_sigma).reshape(n, 1, 1, 1, 1))

    given = Conditions(jnp.zeros(n), jnp.zeros((n, 2)), text, mask)
    denoiser = mock.Mock(
        spec=Denoiser,
        encode=lambda video: x,
        conditions=lambda params, batch: given,
        low_res_size=None,
        self_conditioned_F=self_conditioned_F,
        sigma_data=1.0,
        sigma_in=si,
        image_sigma_in=0.0,
        sigma_in_of=lambda frame_interval: si,
    )
    batch = {"video": jnp.zeros(x.shape, jnp.uint8), "frame_interval": jnp.zeros(n)}
    streams = keys.streams(0, 0, step.STREAMS)
    drawn = step.draw(denoiser, OBJECTIVE, batch["video"], streams)
    dropout = streams["dropout1"], streams["dropout2"]
    return float(step.loss({}, batch, drawn, dropout, denoiser, OBJECTIVE)), asked


@pytest.mark.parametrize("si", [1.0, 4.0, 32.0])
def test_a_network_that_answers_zero_has_loss_one(si):
    loss, _ = loss_with(lambda x, x_sigma, sigma: jnp.zeros_like(x), n=2**15, si=si)
    assert loss == pytest.approx(1, rel=0.03)


def test_a_network_that_knows_the_video_has_loss_zero():
    def knows(x, x_sigma, sigma):
        skip = edm.c_skip(sigma, 1.0, 4.0) * x_sigma
        return (x - skip) / edm.c_out(sigma, 1.0, 4.0)

    assert loss_with(knows)[0] == pytest.approx(0, abs=1e-6)


def test_noise_levels_and_masks_have_the_configured_frequencies():
    _, asked = loss_with(lambda x, *_: x)
    first, second = (np.asarray(given.text_mask[:, 0]) for given in asked["passes"])
    assert first.mean() == pytest.approx(0.9, abs=0.02)
    assert second.mean() == pytest.approx(0.9, abs=0.02)
    assert np.asarray(asked["keep"]).mean() == pytest.approx(0.9, abs=0.02)
    assert np.mean(asked["log_sigma"]) == pytest.approx(-1.2, abs=0.08)
    both = np.corrcoef(np.stack([first, second, asked["keep"], asked["log_sigma"]]))
    assert np.abs(both - np.eye(4)).max() < 0.06  # drawn apart


def test_the_two_passes_have_different_dropout_keys():
    _, asked = loss_with(lambda x, *_: x, n=2)
    first, second = (jax.random.key_data(key).tolist() for key in asked["dropout"])
    assert first != second


def test_images_that_are_no_videos_have_a_law_of_their_own_and_one_noise_for_all_frames():
    made = tiny.get_config()
    made.diffusion.update(sigma_in=4.0, image_sigma_in=1.0)
    both = build.denoiser(made, VOCABULARY, build.counting_mesh())
    video, image = (dataclasses.replace(both, sigma_in=si, image_sigma_in=0.0) for si in (4.0, 1.0))
    batch = jax.tree.map(jnp.asarray, BATCH)
    params = both.init(jax.random.key(0), batch)
    streams = keys.streams(0, 0, step.STREAMS)
    drawn = step.draw(both, OBJECTIVE, batch["video"], streams)
    one_noise = drawn._replace(eps=jnp.broadcast_to(drawn.eps[:, :1], drawn.eps.shape))
    dropout = streams["dropout1"], streams["dropout2"]
    jitted = jax.jit(step.loss, static_argnums=(4, 5))

    def loss(denoiser, interval, drawn):
        shown = batch | {"frame_interval": jnp.full(len(drawn.eps), interval)}
        return float(jitted(params, shown, drawn, dropout, denoiser, OBJECTIVE))

    assert loss(both, 0.0, drawn) == pytest.approx(loss(image, 0.0, one_noise), rel=1e-6)
    assert loss(both, 0.25, drawn) == pytest.approx(loss(video, 0.25, drawn), rel=1e-6)
    assert loss(both, 0.0, drawn) != pytest.approx(loss(video, 0.0, drawn), rel=1e-3)
