"""Inception-v3 of FID: torch-fidelity's numbers through a real file of weights, in full size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.evaluation.features import inception
from tests.evaluation import inputs, networks

GOLDEN = networks.golden("inception")
IMAGES = inputs.pixels((2, 61, 90, 3), 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    example = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    arrays = networks.tensors(inception.InceptionV3(), example)
    arrays["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(7)
    path = networks.write(tmp_path_factory.mktemp("w") / "inception.safetensors", arrays)
    return inception.load(path)


def test_features_and_logits_are_torch_fidelitys(loaded):
    features = inception.features(loaded, IMAGES)
    networks.agree(features.pooled, GOLDEN["pooled"])
    networks.agree(features.logits, GOLDEN["logits"])


@pytest.mark.parametrize("way", ["clean", "half_pixel"])
def test_features_are_clean_fids_and_pytorch_fids_by_their_ways(loaded, way):
    networks.agree(inception.features(loaded, IMAGES, way).pooled, GOLDEN[way])


def test_the_ways_of_preprocessing_are_told_apart(loaded):
    for way in ("clean", "half_pixel"):
        with pytest.raises(AssertionError):
            networks.agree(inception.features(loaded, IMAGES, way).pooled, GOLDEN["pooled"])


def test_an_epsilon_of_1e_5_is_told_apart(loaded):
    # var + 1e-5 is (var - 0.00099) + 1e-3.
    move = lambda path, x: x - 0.00099 if path[-1].key == "var" else x
    params = jax.tree_util.tree_map_with_path(move, loaded.params)
    features = inception.features(loaded._replace(params=params), IMAGES)
    with pytest.raises(AssertionError):
        networks.agree(features.pooled, GOLDEN["pooled"])
