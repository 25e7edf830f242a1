"""LAMB, Adam, schedule and EMA against formulas in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snapvideo_jax.training import optim

RNG = np.random.default_rng(0)
NO_CLIP = 1e30


def tree(rng, scale=1.0):
    """A kernel, its bias, a norm's scale and a stack of two kernels and biases."""
    normal = lambda *shape: scale * rng.standard_normal(shape).astype(np.float32)
    return {
        "stem": {"kernel": normal(3, 4), "bias": normal(4)},
        "norm": {"scale": normal(4)},
        "blocks": {"up": {"kernel": normal(2, 4, 5), "bias": normal(2, 5)}},
    }


PARAMS, GRADS = tree(RNG), tree(RNG, 0.1)


def make(name="lamb", rate=0.1, clip_norm=NO_CLIP, weight_decay=0.01, eps=1e-6):
    schedule = optax.constant_schedule(rate)
    return optim.make_optimizer(name, schedule, 0.9, 0.99, eps, weight_decay, clip_norm)


def scaled(grads, factor):
    return jax.tree.map(lambda g: g * np.float32(factor), grads)


def updates(optimizer, grads, params=PARAMS, steps=3):
    """The last of some updates, from ever shorter gradients at parameters that are held still."""
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(steps):
        update_tree, state = update(scaled(grads, 1 / (1 + i)), state, params)
    return update_tree


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_the_mask_is_kernels_and_tables_by_name_even_where_stacked():
    mask = optim.adapted_mask(
        PARAMS | {"latent_table": 0.0, "position_bias": 0.0, "embedding": 0.0}
    )
    assert mask["stem"] == {"kernel": True, "bias": False}
    assert mask["blocks"]["up"] == {"kernel": True, "bias": False}
    assert mask["norm"] == {"scale": False}
    assert mask["latent_table"] and mask["position_bias"] and mask["embedding"]


def test_lambs_first_step_is_that_of_the_paper():
    """There Adam's direction is g / (|g| + eps); LAMB scales it to the length of the weights."""
    update = updates(make(), GRADS, steps=1)
    w, g = PARAMS["stem"]["kernel"].astype(float), GRADS["stem"]["kernel"].astype(float)
    direction = g / (np.abs(g) + 1e-6) + 0.01 * w
    expected = -0.1 * direction * np.linalg.norm(w) / np.linalg.norm(direction)
    np.testing.assert_allclose(update["stem"]["kernel"], expected, rtol=1e-4)


def test_biases_and_norms_take_plain_adam_steps():
    reference = optax.chain(optax.scale_by_adam(0.9, 0.99, 1e-6), optax.scale(-0.1))
    expected, update = updates(reference, GRADS), updates(make(), GRADS)
    close(update["norm"], expected["norm"], rtol=1e-5)
    close(update["stem"]["bias"], expected["stem"]["bias"], rtol=1e-5)
    close(update["blocks"]["up"]["bias"], expected["blocks"]["up"]["bias"], rtol=1e-5)


def test_adam_decays_kernels_and_nothing_else():
    plain, decayed = (updates(make("adam", weight_decay=d), GRADS) for d in (0.0, 0.5))
    np.testing.assert_allclose(
        decayed["stem"]["kernel"] - plain["stem"]["kernel"],
        -0.1 * 0.5 * PARAMS["stem"]["kernel"],
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_array_equal(plain["stem"]["bias"], decayed["stem"]["bias"])
    np.testing.assert_array_equal(plain["norm"]["scale"], decayed["norm"]["scale"])


def test_layers_in_a_stack_are_updated_as_if_they_stood_alone():
    layer = lambda t, i: {"up": {"kernel": t["blocks"]["up"]["kernel"][i] * 10.0**i}}
    stack = lambda t: {"blocks": jax.tree.map(lambda *x: np.stack(x), layer(t, 0), layer(t, 1))}
    together = updates(make(), stack(GRADS), stack(PARAMS))
    for i in range(2):
        alone = updates(make(), layer(GRADS, i), layer(PARAMS, i))
        close(together["blocks"]["up"]["kernel"][i], alone["up"]["kernel"], rtol=1e-6)


def test_lamb_does_not_see_the_scale_of_the_gradient():
    optimizer = make(eps=1e-12)
    close(updates(optimizer, GRADS), updates(optimizer, scaled(GRADS, 1000)), rtol=1e-3)


def test_clipping_shortens_long_gradients_to_the_norm_and_leaves_short_ones():
    norm = float(optax.tree.norm(GRADS))
    shown = dict(eps=1.0)  # so large that Adam's step shows the length of the gradient

    def update(length, **options):
        return updates(make(**shown, **options), scaled(GRADS, length / norm), steps=1)

    close(update(2.0, clip_norm=1.0), update(20.0, clip_norm=1.0), rtol=1e-5)
    close(update(0.5, clip_norm=1.0), update(0.5), rtol=1e-6)
    longer, shorter = update(0.5)["stem"]["bias"], update(0.25)["stem"]["bias"]
    assert np.abs(longer - shorter).max() > 1e-3


def test_the_global_norm_is_that_of_all_leaves_as_one_vector():
    """Leaves of one name and shape are added first; here two kernels and two biases."""
    grads = GRADS | {"blocks": {"a": {"up": GRADS["stem"]}, "b": {"up": scaled(GRADS["stem"], 2)}}}
    vector = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)]).astype(float)
    np.testing.assert_allclose(optim.global_norm(grads), np.linalg.norm(vector), rtol=1e-6)


def test_a_leaf_that_starts_at_zero_moves_from_the_first_steps_of_the_warm_up():
    params = {"norm": {"scale": jnp.zeros(4)}, "up": {"kernel": jnp.ones((2, 2))}}
    schedule = optim.warmup_cosine(5e-3, 10_000, 550_000)
    optimizer = optim.make_optimizer("lamb", schedule, 0.9, 0.99, 1e-6, 0.01, NO_CLIP)
    grads = jax.tree.map(jnp.ones_like, params)

    def step(carry, _):
        update, state = optimizer.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], update), state), None

    run = jax.jit(lambda start: jax.lax.scan(step, start, length=1000)[0])
    moved, _ = run((params, optimizer.init(params)))
    np.testing.assert_allclose(moved["norm"]["scale"], -0.24975, rtol=1e-3)  # the sum of the rates


def test_a_kernel_of_zeros_has_trust_ratio_one():
    params = {"up": {"kernel": np.zeros((2, 2), np.float32)}}
    grads = {"up": {"kernel": np.ones((2, 2), np.float32)}}
    update = updates(make(), grads, params, steps=1)
    np.testing.assert_allclose(update["up"]["kernel"], -0.1, rtol=1e-4)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (50, 0.5), (100, 1.0), (550, 0.5), (1000, 0.0), (1200, 0.0)]
)
def test_the_rate_rises_in_a_line_and_falls_in_a_half_cosine(step, rate):
    assert optim.warmup_cosine(1.0, 100, 1000)(step) == pytest.approx(rate, abs=1e-6)


def test_without_warm_up_the_rate_starts_at_its_height():
    assert optim.warmup_cosine(0.3, 0, 10)(0) == pytest.approx(0.3)


decay = functools.partial(optim.ema_decay, half_life=6000.0, ramp=0.05)


@pytest.mark.parametrize(
    ("completed", "beta"),
    [(0, 0.0), (100, 0.870551), (1000, 0.986233), (20_000, 0.999307), (120_000, 0.999884482)],
)
def test_the_ema_forgets_at_the_published_rates(completed, beta):
    assert decay(jnp.int32(completed)) == pytest.approx(beta, abs=6e-7)


def test_the_first_ema_is_a_copy_and_a_constant_stays():
    zeros = scaled(PARAMS, 0)
    close(optim.update_ema(zeros, PARAMS, decay(jnp.int32(0))), PARAMS, rtol=0)
    close(optim.update_ema(PARAMS, PARAMS, decay(jnp.int32(500))), PARAMS, rtol=0)


def test_the_gap_to_a_constant_halves_in_one_half_life():
    half_life, start = 50, 2000  # steps; the ramp has ended at 50 / 0.05 = 1000
    run = lambda ema, k: (optim.update_ema(ema, 1.0, optim.ema_decay(k, half_life, 0.05)), None)
    ema, _ = jax.lax.scan(run, jnp.float32(0), start + jnp.arange(half_life))
    assert ema == pytest.approx(0.5, rel=1e-4)
