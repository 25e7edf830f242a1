"""Published networks with the tests' random weights, through real files."""

import json
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from snapvideo_jax.evaluation.features import weights
from snapvideo_jax.files import safetensors
from tests.evaluation import inputs

GOLDEN = Path(__file__).parents[1] / "golden/metrics"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensors(module, *example):
    """What a published file of this network holds: name -> array, by the network's own tree."""
    abstract = jax.eval_shape(module.init, jax.random.key(0), *example)["params"]
    shapes = {
        weights.torch_name(leaf): weights.to_torch(leaf, np.empty(x.shape, np.bool_)).shape
        for leaf, x in flatten_dict(abstract).items()
    }
    return {name: inputs.tensor(name, shape) for name, shape in shapes.items()}


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        headers = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        safetensors.write(path, headers, lambda name: arrays[name])
    return path


def agree(features, expected, tolerance=1e-4):
    """Compares with a `summary` of the golden script, in units of the features' spread."""
    features = np.asarray(features)
    scale = max(1.0, np.abs(np.array(expected["first"])).max())
    np.testing.assert_allclose(
        features[:, :6], np.array(expected["first"]), rtol=0, atol=tolerance * scale
    )
    np.testing.assert_allclose(
        inputs.projection(features), np.array(expected["sums"]), rtol=0, atol=tolerance * scale
    )
