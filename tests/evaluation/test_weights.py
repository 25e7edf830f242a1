"""Files of weights: each form loads, and each wrong one is one clear line."""

import hashlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snapvideo_jax.errors import DataError, UserError
from snapvideo_jax.evaluation.features import inception, weights
from snapvideo_jax.evaluation.features.layers import ConvNorm
from tests.evaluation import networks

ARCHIVES = Path(__file__).parents[1] / "golden/metrics/archives"
NETWORK, EXAMPLE = ConvNorm(2, (1, 1)), jnp.zeros((1, 1, 1, 3))
# The archives hold a Sequential of the same layers.
PLACES = {"0": "conv", "1": "bn"}


def archive(form, sha256=None):
    file = weights.open_file(ARCHIVES / f"{form}.pt", sha256)
    tensors = {
        f"{PLACES[name[0]]}{name[1:]}": array
        for name, array in file.tensors.items()
        if name not in ("turned", "0.bias")
    }
    return weights.fit(file._replace(tensors=tensors), NETWORK, EXAMPLE)


@pytest.fixture
def arrays():
    return networks.tensors(NETWORK, EXAMPLE)


def load(path, **fields):
    return weights.load(path, NETWORK, EXAMPLE, **fields)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_file_loads_with_its_sha256(tmp_path, arrays, suffix):
    path = networks.write(tmp_path / f"w.{suffix}", arrays)
    loaded = load(path)
    kernel = loaded.params["params"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], arrays["conv.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(loaded.params["params"]["bn"]["var"], arrays["bn.running_var"])
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(path, sha256=loaded.sha256).file == load(path, sha256=loaded.sha256[:8]).file


@pytest.mark.parametrize("form", ["zip", "old", "script"])
def test_what_torch_saved_loads_without_torch(form):
    params, expected = archive(form).params, networks.golden("archives")
    values = np.array(expected["0.weight"][1], np.float32).reshape(2, 3)
    np.testing.assert_array_equal(params["params"]["conv"]["kernel"][0, 0], values.T)
    assert NETWORK.apply(params, EXAMPLE).shape == (1, 1, 1, 2)


def refusal(call):
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value) and isinstance(error.value, UserError)
    return str(error.value)


def test_another_sha256_is_refused():
    message = refusal(lambda: archive("zip", sha256="6726825d"))
    assert "zip.pt: has the sha256 " in message and "expected 6726825d; get the file" in message
    assert "checks nothing" in refusal(lambda: archive("zip", sha256="67"))


def test_a_tensor_missing_left_over_of_another_shape_or_not_finite(tmp_path, arrays):
    def message(**changed):
        parts = {n: a for n, a in {**arrays, **changed}.items() if a is not None}
        return refusal(lambda: load(networks.write(tmp_path / "w.safetensors", parts)))

    assert "lacks 'bn.weight'" in message(**{"bn.weight": None})
    assert "holds 'fc.weight', which ConvNorm has not" in message(**{"fc.weight": np.ones(3)})
    other = {"conv.weight": np.ones((3, 3, 1, 1))}
    assert "'conv.weight' is (3, 3, 1, 1), expected (2, 3, 1, 1)" in message(**other)
    broken = {"bn.bias": np.array([1.0, np.inf], np.float32)}
    assert "'bn.bias' has numbers that are not finite" in message(**broken)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth"])
def test_a_missing_a_short_and_a_wrong_kind_of_file(tmp_path, arrays, suffix):
    path = tmp_path / f"w.{suffix}"
    assert "No such file" in refusal(lambda: load(path))
    path.write_text("<html>404</html>")
    assert str(path) in refusal(lambda: load(path))
    if suffix != "pth":
        path.write_bytes(networks.write(path, arrays).read_bytes()[:-50])
        assert str(path) in refusal(lambda: load(path))


def test_an_npz_of_objects_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "w.npz", **{"conv.weight": np.array([print], object)})
    assert "cannot be read as npz" in refusal(lambda: load(tmp_path / "w.npz"))


def test_a_file_of_another_network_is_refused_by_inception(tmp_path, arrays):
    path = networks.write(tmp_path / "w.npz", arrays)
    assert "lacks 'Conv2d_1a_3x3.bn.bias'" in refusal(lambda: inception.load(path))


def test_the_way_to_torchs_layout_and_back_is_the_identity():
    for shape in ((4, 5), (2, 3, 4, 5), (2, 3, 4, 5, 6)):
        kernel = np.arange(np.prod(shape)).reshape(shape)
        leaf = ("conv", "kernel")
        there = weights.to_torch(leaf, kernel)
        assert there.shape == (shape[-1], shape[-2], *shape[:-2])
        np.testing.assert_array_equal(weights._from_torch(leaf, there), kernel)


def test_dense_kernels_are_transposed(tmp_path):
    path = networks.write(tmp_path / "w.npz", {"weight": np.arange(6.0).reshape(2, 3)})
    dense = nn.Dense(2, use_bias=False)
    params = weights.load(path, dense, jax.ShapeDtypeStruct((1, 3), jnp.float32)).params
    np.testing.assert_array_equal(dense.apply(params, jnp.ones((1, 3))), [[3, 12]])
