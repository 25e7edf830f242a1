"""Resize kernels: each is its reference's, and none is another."""

import itertools

import numpy as np
import pytest

from snapvideo_jax.evaluation.features import resize
from tests.evaluation import inputs, networks

IMAGE = inputs.pixels((1, 13, 18, 3), 0)
GOLDEN = networks.golden("resizes")
SIZE = (11, 7)
KERNELS = {
    **{
        name: lambda x, name=name: np.asarray(resize.bilinear(x.astype(np.float32), SIZE, name))
        for name in resize.CENTERS
    },
    "pillow_float": lambda x: resize.pillow_bicubic_float(x, SIZE),
    "clip": lambda x: resize.pillow_bicubic_crop(x, 8),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_its_references(name):
    np.testing.assert_allclose(KERNELS[name](IMAGE).ravel(), GOLDEN[name], rtol=0, atol=6e-3)


@pytest.mark.parametrize("pair", itertools.combinations(["pillow_float", *resize.CENTERS], 2))
def test_kernels_differ_by_grey_levels(pair):
    a, b = (KERNELS[name](IMAGE) for name in pair)
    assert np.abs(a - b).mean() > 2


@pytest.mark.parametrize("name", resize.CENTERS)
def test_equal_sizes_change_nothing_and_flat_pictures_stay_flat(name):
    np.testing.assert_array_equal(resize.matrix(name, 9, 9), np.eye(9))
    for out in (1, 4, 30):
        np.testing.assert_allclose(resize.matrix(name, 9, out).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(36, 64), (64, 36), (24, 24), (288, 512)])
def test_the_crop_is_square_whatever_the_shape(shape):
    video = inputs.pixels((2, *shape, 3), 1)
    assert resize.pillow_bicubic_crop(video, 24).shape == (2, 24, 24, 3)
