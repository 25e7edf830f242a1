"""Every reshape of tokens against its index formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.models.patches import Grouping, group, patchify, ungroup, unpatchify

STAGE_1 = (16, 40, 64), Grouping(4, (16, 5, 4))
SMALL = (4, 12, 8), Grouping(2, (2, 3, 2))  # two groups along every axis of a longer walk
UPSAMPLER = (16, 288, 512), Grouping(4, (16, 18, 16))
every_size = pytest.mark.parametrize(("video", "grouping"), [STAGE_1, SMALL, UPSAMPLER])


def place(video, grouping, t, y, x, c):
    """(group, token, channel) of a pixel, from the paper's words."""
    p, (gt, gh, gw) = grouping.patch, grouping.group
    rows, columns = video[1] // p // gh, video[2] // p // gw
    in_group = ((t // gt) * rows + y // p // gh) * columns + x // p // gw
    token = ((t % gt) * gh + (y // p) % gh) * gw + (x // p) % gw
    return in_group, token, ((y % p) * p + x % p) * 3 + c


@every_size
def test_each_pixel_lands_where_the_formula_says(video, grouping):
    x = np.arange(np.prod(video) * 3, dtype=np.int32).reshape(1, *video, 3)
    tokens = np.asarray(patchify(jnp.asarray(x, jnp.float32), grouping))
    assert tokens.shape == (1, grouping.num_groups(video), grouping.tokens, 3 * grouping.patch**2)
    pixel = np.stack(np.unravel_index(x[0].ravel(), (*video, 3)))
    np.testing.assert_array_equal(tokens[0][place(video, grouping, *pixel)], x[0].ravel())


@every_size
def test_cutting_and_joining_give_back_every_bit(video, grouping):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *video, 3)), jnp.float32)
    np.testing.assert_array_equal(unpatchify(patchify(x, grouping), grouping, video), x)


def test_one_pixel_touches_one_token():
    video, grouping = STAGE_1
    rng = np.random.default_rng(1)
    for t, y, x in zip(*(rng.integers(0, size, 20) for size in video), strict=True):
        lit = np.zeros((1, *video, 3))
        lit[0, t, y, x] = 1
        touched = np.argwhere(np.asarray(patchify(jnp.asarray(lit), grouping))[0].any(axis=-1))
        assert touched.tolist() == [list(place(video, grouping, t, y, x, 0)[:2])]


def test_stage_1_has_8_groups_of_320_tokens_and_the_upsampler_32_of_4608():
    for (video, grouping), groups, tokens in ((STAGE_1, 8, 320), (UPSAMPLER, 32, 4608)):
        assert grouping.num_groups(video) == groups
        assert grouping.tokens == tokens


def test_stage_1_groups_are_two_rows_of_four_and_span_all_frames():
    video, grouping = STAGE_1
    assert grouping.groups(video) == (1, 2, 4)


@pytest.mark.parametrize(
    ("video", "nearest"),
    [((16, 36, 64), (16, 40, 64)), ((15, 40, 64), (16, 40, 64)), ((16, 40, 7), (16, 40, 16))],
)
def test_a_video_that_does_not_divide_is_refused_with_the_nearest_that_does(video, nearest):
    with pytest.raises(ConfigError) as error:
        STAGE_1[1].groups(video)
    assert str(video) in str(error.value) and str(nearest) in str(error.value)
    assert "\n" not in str(error.value)


def test_latents_of_a_group_are_neighbors_in_the_row():
    row = jnp.arange(2.0 * 12 * 5).reshape(2, 12, 5)
    grouped = group(row, 4)
    assert grouped.shape == (2, 4, 3, 5)
    np.testing.assert_array_equal(grouped[1, 2, 1], row[1, 2 * 3 + 1])
    np.testing.assert_array_equal(ungroup(grouped), row)
