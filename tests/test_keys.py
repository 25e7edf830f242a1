"""Random streams as functions of seed, step and name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from snapvideo_jax import keys
from snapvideo_jax.training.step import STREAMS


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def test_every_seed_step_and_name_has_its_own_key():
    drawn = [
        bits(key)
        for seed, step in itertools.product((0, 1, 2**31 - 1), (0, 1, 550_000))
        for key in keys.streams(seed, step, STREAMS).values()
    ]
    assert len(drawn) == len(set(drawn)) == 9 * len(STREAMS)


def test_the_same_seed_step_and_name_repeat_their_key():
    first, again = (keys.streams(3, 7, STREAMS) for _ in range(2))
    assert {n: bits(k) for n, k in first.items()} == {n: bits(k) for n, k in again.items()}


def test_a_further_name_moves_no_other_stream():
    alone = keys.streams(3, 7, ("eps",))
    among = keys.streams(3, 7, ("sigma", "more", "eps"))
    assert bits(alone["eps"]) == bits(among["eps"])


def test_a_step_on_the_device_gives_the_keys_of_a_step_on_the_host():
    draw = lambda step: jax.random.normal(keys.streams(3, step, ("eps",))["eps"], (4,))
    np.testing.assert_array_equal(jax.jit(draw)(jnp.int32(7)), draw(7))


def test_streams_of_one_step_do_not_correlate():
    draws = [jax.random.normal(key, (4096,)) for key in keys.streams(0, 0, STREAMS).values()]
    correlation = np.corrcoef(np.stack(draws)) - np.eye(len(STREAMS))
    assert np.abs(correlation).max() < 0.07
