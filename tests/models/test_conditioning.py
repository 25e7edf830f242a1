"""What the network may see of the conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.models.conditioning import ConditioningTokens, Conditions
from snapvideo_jax.models.layers import AttentionBlock, dot_product_attention

RNG = np.random.default_rng(0)
C_NOISE = jnp.float32([-0.3, 0.4, 1.0])
CONDITIONS = Conditions(
    frame_interval=jnp.float32([0.125, 0.0, 1 / 24]),
    source_size=jnp.int32([[36, 64], [720, 1280], [0, 0]]),
    text=jnp.asarray(RNG.standard_normal((3, 4, 6)), jnp.float32),
    text_mask=jnp.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool),
)


@pytest.fixture(scope="module")
def tokens_of(random_params):
    module = ConditioningTokens(8)
    variables = {"params": random_params(module, C_NOISE, CONDITIONS)}
    return jax.jit(lambda c_noise, conditions: module.apply(variables, c_noise, conditions))


@pytest.fixture(scope="module")
def read(tokens_of, random_params):
    """Conditions -> the output of one attention block that reads their tokens."""
    reader = AttentionBlock(heads=2, head_channels=4, attend=dot_product_attention)
    x = jnp.asarray(RNG.standard_normal((3, 2, 8)), jnp.float32)
    variables = {"params": random_params(reader, x, *tokens_of(C_NOISE, CONDITIONS))}
    return jax.jit(lambda conditions: reader.apply(variables, x, *tokens_of(C_NOISE, conditions)))


def test_four_visible_scalars_come_before_the_text(tokens_of):
    tokens, mask = tokens_of(C_NOISE, CONDITIONS)
    assert tokens.shape == (3, 4 + 4, 8)
    np.testing.assert_array_equal(mask[:, :4], True)
    np.testing.assert_array_equal(mask[:, 4:], CONDITIONS.text_mask)


@pytest.mark.parametrize(
    ("token", "change"),
    [
        (0, lambda g: (C_NOISE + 0.01, g)),
        (1, lambda g: (C_NOISE, g.replace(frame_interval=g.frame_interval + 0.01))),
        (2, lambda g: (C_NOISE, g.replace(source_size=g.source_size + jnp.int32([[1, 0]])))),
        (3, lambda g: (C_NOISE, g.replace(source_size=g.source_size + jnp.int32([[0, 1]])))),
        (4, lambda g: (C_NOISE, g.replace(text=g.text + jnp.float32([[[1]], [[0]], [[0]]])))),
    ],
)
def test_each_condition_has_its_own_token(tokens_of, token, change):
    before, _ = tokens_of(C_NOISE, CONDITIONS)
    after, _ = tokens_of(*change(CONDITIONS))
    changed = (np.asarray(before) != after).any(axis=(0, 2))
    np.testing.assert_array_equal(changed[:4], np.arange(4) == token)
    assert changed[4:].all() == changed[4:].any() == (token == 4)


def test_equal_scalars_of_different_kind_have_different_tokens(tokens_of):
    same = CONDITIONS.replace(source_size=jnp.full((3, 2), 64, jnp.int32))
    tokens, _ = tokens_of(C_NOISE, same)
    assert (np.asarray(tokens[:, 2]) != tokens[:, 3]).any()


def test_padded_text_cannot_be_seen(read):
    padded = ~CONDITIONS.text_mask[..., None]
    other = CONDITIONS.replace(text=jnp.where(padded, 1e4, CONDITIONS.text))
    np.testing.assert_array_equal(read(CONDITIONS), read(other))


def test_real_text_can_be_seen(read):
    other = CONDITIONS.replace(text=-CONDITIONS.text)
    changed = (np.asarray(read(CONDITIONS)) != read(other)).any(axis=(1, 2))
    np.testing.assert_array_equal(changed, CONDITIONS.text_mask.any(axis=1))


def test_dropped_text_cannot_be_seen(read):
    keep = jnp.array([False, True, True])
    other = CONDITIONS.replace(text=CONDITIONS.text + jnp.float32([7, 0, 0])[:, None, None])
    np.testing.assert_array_equal(read(CONDITIONS.drop_text(keep)), read(other.drop_text(keep)))
    changed = (np.asarray(read(CONDITIONS)) != read(CONDITIONS.drop_text(keep))).any(axis=(1, 2))
    np.testing.assert_array_equal(changed, [True, False, False])


def test_dropping_text_leaves_zeros_and_the_other_conditions():
    dropped = CONDITIONS.drop_text(jnp.array([False, True, False]))
    np.testing.assert_array_equal(dropped.text[::2], 0)
    np.testing.assert_array_equal(dropped.text[1], CONDITIONS.text[1])
    np.testing.assert_array_equal(dropped.text_mask.any(axis=1), [False, True, False])
    np.testing.assert_array_equal(dropped.frame_interval, CONDITIONS.frame_interval)
    np.testing.assert_array_equal(dropped.source_size, CONDITIONS.source_size)


def test_one_answer_drops_the_text_of_all():
    everything = CONDITIONS.drop_text(False)
    assert not np.asarray(everything.text).any() and not np.asarray(everything.text_mask).any()
    np.testing.assert_array_equal(CONDITIONS.drop_text(True).text, CONDITIONS.text)
