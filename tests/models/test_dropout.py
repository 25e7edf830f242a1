"""Dropout's masks: the share they keep, and that nothing ties one element to another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.models.dropout import dropout, mask


def draw(seed=0, share=0.9, rows=(64, 32), width=512):
    words = jax.random.bits(jax.random.key(seed), (2, *rows), jnp.uint32)
    return np.asarray(mask(words, width, share)).reshape(-1, width)


def correlation(a, b):
    """Correlates two masks, in standard deviations of independent ones."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


def test_the_rest_is_scaled_up_and_the_gradient_knows_the_same_mask():
    x = jnp.arange(1.0, 4097.0).reshape(8, 512)
    out, pull = jax.vjp(lambda x: dropout(x, 0.25, jax.random.key(3)), x)
    gone = np.asarray(out) == 0
    np.testing.assert_allclose(out, np.where(gone, 0, x / 0.75), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], np.where(gone, 0, 1 / 0.75), rtol=1e-6)


def test_two_words_a_row_are_all_that_the_backward_pass_saves():
    _, pull = jax.vjp(lambda x: dropout(x, 0.25, jax.random.key(3)), jnp.ones((8, 512)))
    assert [leaf.size for leaf in jax.tree.leaves(pull)] == [2 * 8]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_masks_keep_the_share_of_the_argument(share):
    """A million elements: within five standard deviations."""
    masks = draw(share=share)
    assert np.mean(masks) == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / masks.size))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_rows_and_columns_keep_shares_that_vary_as_those_of_coins(share):
    masks = draw(share=share)
    for axis in (0, 1):
        variance = np.var(np.mean(masks, axis)) * masks.shape[axis] / (share * (1 - share))
        assert variance == pytest.approx(1, abs=5 * np.sqrt(2 / masks.shape[1 - axis]))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_element_says_nothing_of_its_neighbors(share):
    masks = draw(share=share)
    for apart in (1, 2, 3, 7, 8, 64, 128, 256):
        assert abs(correlation(masks[:, apart:], masks[:, :-apart])) < 5, f"columns {apart} apart"
        assert abs(correlation(masks[apart:], masks[:-apart])) < 5, f"rows {apart} apart"
    odd = masks[:, :-2] ^ masks[:, 1:-1]
    assert abs(correlation(odd, masks[:, 2:])) < 5  # nor do two neighbors of the third


def test_rows_whose_words_are_close_differ_as_much_as_any():
    """Words of jax.random are never close; a hash that needs no luck does not care."""
    words = jnp.stack([jnp.arange(2048, dtype=jnp.uint32), jnp.zeros(2048, jnp.uint32)])
    for near in (words, words[::-1], words << 20):
        masks = np.asarray(mask(near, 512, 0.5))
        assert abs(correlation(masks[1:], masks[:-1])) < 5
        assert len({row.tobytes() for row in masks}) == 2048


def test_keys_draw_masks_of_their_own():
    for a, b in itertools.combinations([draw(seed) for seed in range(3)], 2):
        assert abs(correlation(a, b)) < 5


def test_it_is_a_few_rounds_of_murmurhash3():
    masks = np.asarray(mask(jnp.uint32([[7], [11]]), 3, 0.5))[0]
    for column in range(3):
        h = (7 + column * 0x9E3779B9) % 2**32
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13 ^ 11) * 0xC2B2AE35 % 2**32
        assert masks[column] == (h < 2**31)
