"""I3D of FVD: the port's numbers through a real file of weights, in full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation.features import i3d
from tests.evaluation import inputs, networks

GOLDEN = networks.golden("i3d")
VIDEOS = inputs.pixels((1, 17, 36, 64, 3), 0)  # two places in time are averaged


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    example = jax.ShapeDtypeStruct((1, 9, 224, 224, 3), jnp.float32)
    arrays = networks.tensors(i3d.I3D(), example)
    return i3d.load(networks.write(tmp_path_factory.mktemp("w") / "i3d.safetensors", arrays))


@pytest.fixture(scope="module")
def by_default(loaded):
    return i3d.features(loaded, VIDEOS, way="half_pixel")


def test_features_are_those_of_the_original_and_the_default_is_its_epsilon(by_default):
    networks.agree(by_default, GOLDEN["original"])


def test_features_with_the_ports_epsilon_are_cd_fvds(loaded):
    port = i3d.features(loaded, VIDEOS, way="half_pixel", epsilon=i3d.EPSILON_OF_PORTS)
    networks.agree(port, GOLDEN["port"])


def test_the_two_epsilons_are_told_apart(by_default):
    with pytest.raises(AssertionError):
        networks.agree(by_default, GOLDEN["port"])


def test_every_way_of_preprocessing_is_another():
    tf1, half_pixel, videogpt = (np.asarray(i3d.preprocess(VIDEOS, w)) for w in i3d.PREPROCESSING)
    assert np.abs(tf1 - half_pixel).mean() * 127.5 > 4
    assert np.abs(half_pixel - 2 * videogpt).mean() * 127.5 > 4


def test_the_squash_keeps_all_columns_and_the_crop_does_not():
    video = np.zeros((1, 9, 36, 64, 3), np.uint8)
    video[..., :12, :] = 255  # the left 12 of 64 columns; the crop begins at column 14
    assert i3d.preprocess(video, "tf1").mean() > -0.7
    assert i3d.preprocess(video, "videogpt").max() == -0.5
    assert i3d.preprocess(video, "half_pixel").max() > 0.99


def test_short_videos_are_refused_in_one_line(loaded):
    with pytest.raises(DataError, match=r"^I3D needs 9 or more frames, the videos have 8$"):
        i3d.features(loaded, VIDEOS[:, :8])
