"""Computes a part of an exported model in numpy alone: the embedding of the noise level.

  pip install numpy safetensors
  python from_numpy.py exported 0.5

A kernel is [inputs, outputs], so a layer is x @ kernel + bias. docs/export.md has the names.
"""

import sys
from pathlib import Path

if len(sys.argv) != 3:
    sys.exit(__doc__)

import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

folder, sigma = Path(sys.argv[1]), float(sys.argv[2])
parameters = {}
for file in sorted(folder.glob("*.safetensors")):
    parameters |= load_file(file)


def dense(name: str, x: np.ndarray) -> np.ndarray:
    """Applies the projection of that name."""
    return x @ parameters[f"{name}/kernel"] + parameters[f"{name}/bias"]


kernel = parameters["network/tokens/c_noise/up/kernel"]
half = len(kernel) // 2
angles = 1000 * np.log(sigma) / 4 * 10_000.0 ** (-np.arange(half) / half)
features = np.concatenate([np.sin(angles), np.cos(angles)])
features = (features - features.mean()) / features.std()
hidden = dense("network/tokens/c_noise/up", features)
token = dense("network/tokens/c_noise/down", hidden / (1 + np.exp(-hidden)))
print(" ".join(f"{number:.6f}" for number in token))
