"""C3D, trained on Sports-1M and finetuned on UCF-101 (Tran et al. 2015): the inception score.

The published files are TGANv2's, both npz: conv3d_deepnetA_ucf.npz with Chainer's names
("conv1a/W"), and mean2.npz, the mean clip that is subtracted. A score by Inception-v3 is another.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from snapvideo_jax.errors import DataError
from snapvideo_jax.evaluation.features import resize, weights
from snapvideo_jax.evaluation.features.devices import split
from snapvideo_jax.evaluation.features.layers import max_pool
from snapvideo_jax.evaluation.features.weights import Weights

FRAMES, SIDE, CLASSES = 16, 112, 101
CROP = slice(8, 8 + SIDE)  # of the mean clip, in height and in width
LAYERS = (("1a",), ("2a",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b"))  # a pool after each group


class C3D(nn.Module):
    """Clips of blue, green and red in 0 to 255 less the mean clip -> logits of UCF-101."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096

    @nn.compact
    def __call__(self, x: Float[Array, "B 16 112 112 3"]) -> Float[Array, "B 101"]:
        """Returns the logits."""
        for names, width in zip(LAYERS, self.widths, strict=True):
            for name in names:
                x = nn.relu(_conv(width, f"conv{name}")(x))
            if names[0] == "5a":  # 7 x 7 become 4 x 4: the last window may be half empty
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
            window = (1, 2, 2) if names[0] == "1a" else (2, 2, 2)
            x = max_pool(x, window, window, "VALID")
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # channels come first in the published file
        x = nn.relu(_dense(self.hidden, "fc6")(x))
        x = nn.relu(_dense(self.hidden, "fc7")(x))
        return _dense(CLASSES, "fc8")(x)


def _conv(features: int, name: str) -> nn.Conv:
    return nn.Conv(features, (3, 3, 3), precision="highest", name=name)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, precision="highest", name=name)


class LoadedC3D(NamedTuple):
    """The network with its weights, and the mean clip, cropped, in blue, green, red."""

    module: C3D
    weights: Weights
    mean: Float[np.ndarray, "16 112 112 3"]
    mean_sha256: str


def load(
    path: str | Path,
    mean: str | Path,
    sha256: str | None = None,
    mean_sha256: str | None = None,
    module: C3D = C3D(),  # noqa: B008
) -> LoadedC3D:
    """Reads the weights and the mean clip.

    Args:
        path: conv3d_deepnetA_ucf.npz, or the same tensors by torch's names ("conv1a.weight").
        mean: mean2.npz; its "mean" is [3, 16, 128, 128 or more].
        sha256: of the weights, and `mean_sha256` of the mean, as for `weights.open_file`.
        mean_sha256: see there.
        module: the network; another one for tests.

    Raises:
        DataError: one line, where a file is damaged or another.
    """
    file = weights.open_file(path, sha256)
    tensors = {_torch_name(name): array for name, array in file.tensors.items()}
    clips = jax.ShapeDtypeStruct((1, FRAMES, SIDE, SIDE, 3), jnp.float32)
    loaded = weights.fit(file._replace(tensors=tensors), module, clips)
    mean_file = weights.open_file(mean, mean_sha256)
    clip = mean_file.tensors.get("mean", np.empty(0))
    if clip.ndim != 4 or clip.shape[:3] != (3, FRAMES, 128) or clip.shape[3] < CROP.stop:
        raise DataError(f"{mean}: its 'mean' is {clip.shape}, expected (3, 16, 128, 128 or more)")
    cropped = np.moveaxis(clip[:, :, CROP, CROP], 0, -1).astype(np.float32)
    return LoadedC3D(module, loaded, cropped, mean_file.sha256)


def _torch_name(name: str) -> str:
    layer, _, last = name.rpartition("/")
    return f"{layer}.{ {'W': 'weight', 'b': 'bias'}.get(last, last) }" if layer else name


def preprocess(
    videos: UInt8[np.ndarray, "B 16 H W 3"], mean: Float[np.ndarray, "16 112 112 3"]
) -> Float[Array, "B 16 112 112 3"]:
    """Resizes to 112 x 112, corners aligned, whatever the aspect ratio; BGR less the mean clip."""
    x = resize.bilinear(split(videos).astype(jnp.float32), (SIDE, SIDE), kernel="align_corners")
    return x[..., ::-1] - mean[None]


def logits(loaded: LoadedC3D, videos: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B 101"]:
    """Returns the logits of a batch, for `scores.inception_score`.

    Raises DataError where the videos have not 16 frames.
    """
    if videos.shape[1] != FRAMES:
        raise DataError(f"C3D takes {FRAMES} frames, the videos have {videos.shape[1]}")
    return np.asarray(_apply(loaded.module, loaded.weights.params, preprocess(videos, loaded.mean)))


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: C3D, params: Any, clips: Float[Array, "B 16 112 112 3"]) -> Any:
    return module.apply(params, clips)
