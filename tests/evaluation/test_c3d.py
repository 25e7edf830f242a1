"""C3D of the inception score: a torch definition's numbers through real files of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation.features import c3d
from tests.evaluation import inputs, networks

GOLDEN = networks.golden("c3d")
VIDEOS = inputs.pixels((1, 16, 36, 64, 3), 0)
EXAMPLE = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.float32)
NARROW = c3d.C3D(widths=(4, 6, 8, 10, 12), hidden=16)


def write(folder, module, chainer=True, mean=None):
    """The two files, with Chainer's names or torch's."""
    arrays = networks.tensors(module, EXAMPLE)
    if chainer:
        names = {name: name.replace(".weight", "/W").replace(".bias", "/b") for name in arrays}
        arrays = {names[name]: array for name, array in arrays.items()}
    path = networks.write(folder / ("c3d.npz" if chainer else "c3d.safetensors"), arrays)
    mean = inputs.mean_clip() if mean is None else mean
    return path, networks.write(folder / "mean2.npz", {"mean": mean})


@pytest.mark.parametrize("chainer", [True, False])
def test_logits_are_torchs(tmp_path, chainer):
    loaded = c3d.load(*write(tmp_path, NARROW, chainer), module=NARROW)
    networks.agree(c3d.logits(loaded, VIDEOS) / 128, GOLDEN["narrow"])


@pytest.mark.slow
def test_logits_of_the_published_size_are_torchs(tmp_path):
    loaded = c3d.load(*write(tmp_path, c3d.C3D()))
    networks.agree(c3d.logits(loaded, VIDEOS) / 128, GOLDEN["published"])


def test_the_published_size_has_78_million_parameters():
    tree = jax.eval_shape(c3d.C3D().init, jax.random.key(0), EXAMPLE)
    assert sum(x.size for x in flatten_dict(tree).values()) == 78_409_573


def test_red_and_blue_are_swapped_and_the_mean_is_cropped_at_8():
    video = np.zeros((1, 16, 20, 30, 3), np.uint8)
    video[..., 0] = 200
    mean = np.zeros((3, 16, 128, 128), np.float32)
    mean[:, :, 8, 8] = 50
    cropped = np.moveaxis(mean[:, :, c3d.CROP, c3d.CROP], 0, -1)
    clip = np.asarray(c3d.preprocess(video, cropped))
    np.testing.assert_allclose(clip[0, 3, 5, 5], [0, 0, 200], atol=1e-4)
    np.testing.assert_allclose(clip[0, 3, 0, 0], [-50, -50, 150], atol=1e-4)


def test_a_mean_of_another_shape_and_other_lengths_are_one_line(tmp_path):
    files = write(tmp_path, NARROW, mean=np.zeros((3, 16, 112, 112)))
    with pytest.raises(DataError, match=r"mean2.npz: its 'mean' is \(3, 16, 112, 112\), expected"):
        c3d.load(*files, module=NARROW)
    loaded = c3d.load(*write(tmp_path, NARROW), module=NARROW)
    with pytest.raises(DataError, match=r"^C3D takes 16 frames, the videos have 15$"):
        c3d.logits(loaded, VIDEOS[:, :15])
