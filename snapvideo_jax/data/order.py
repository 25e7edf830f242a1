"""The order of training data as a pure function of (seed, example number): no state.

Images and videos are counted apart: step s with I images and V videos a batch reads the images
g = s I ... s I + I - 1 and the videos g = s V ... s V + V - 1. The file that g shows and every
choice that is drawn for it follow from (seed, g) alone. So a run resumes from its step number, and
any number of hosts draws the same batches.
"""

import hashlib
import math
from typing import Any

import numpy as np
from jaxtyping import Int

from snapvideo_jax.errors import ConfigError

_ROUNDS = 6
_MASK64 = 2**64 - 1
_WEYL = 0x9E3779B97F4A7C15  # odd 2^64 / golden ratio: spreads consecutive keys

# An integer, or an array of uint64, whose arithmetic is modulo 2^64 by itself. For one number that
# of integers takes a tenth of the time.
Words = int | np.ndarray


def _mix(x: Words) -> Any:
    """Applies the splitmix64 finalizer, a bijection of uint64: each bit affects all the others."""
    x = x & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _feistel(i: Words, n: int, keys: Words) -> Any:
    """Permutes the next power of four from n on: the halves of i swap, xor-ed with keyed hashes."""
    half_bits = max(1, math.ceil((n - 1).bit_length() / 2))
    mask = 2**half_bits - 1
    left, right = i >> half_bits, i & mask
    for r in range(1, _ROUNDS + 1):
        hashed = _mix(right + _mix(keys + (_WEYL * r & _MASK64)))
        left, right = right, left ^ (hashed & mask)
    return (left << half_bits) | right


def _permute_below(i: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Applies the permutation of the next power of four until each value lies below n."""
    i = _feistel(i, n, keys)
    while (outside := i >= n).any():
        # A cycle that starts below n comes back below n, so the loop ends.
        i[outside] = _feistel(i[outside], n, keys[outside])
    return i.astype(np.int64)


def permute(i: Int[np.ndarray, " B"], n: int, key: int) -> Int[np.ndarray, " B"]:
    """Returns the images of `i` under permutation number `key` of range(n).

    A 6-round Feistel network with cycle walking takes O(1) memory for any n below 2^62.

    Args:
      i: integers in [0, n).
      n: size of the set, at least 1.
      key: any integer; each is another permutation.

    Raises:
      ValueError: an entry of `i` outside [0, n).
    """
    if i.size and not (0 <= i.min() and i.max() < n):
        raise ValueError(f"positions must lie in [0, {n}), got {i.min()} ... {i.max()}")
    return _permute_below(i.astype(np.uint64), n, np.full(i.shape, _mix(key), np.uint64))


def index(g: Int[np.ndarray, " B"], n: int, seed: int) -> Int[np.ndarray, " B"]:
    """Returns the example, in range(n), that each global sample number shows.

    Epoch e = g // n shows each of the n examples once, in an order keyed by (seed, e).

    Args:
      g: global sample numbers, at least 0.
      n: number of examples, at least 1.
      seed: any integer.
    """
    epoch, position = np.divmod(g.astype(np.uint64), np.uint64(n))
    return _permute_below(position, n, _epoch_key(seed, epoch))


def index_of(g: int, n: int, seed: int) -> int:
    """Returns the example that one global sample number shows, as `index` does."""
    epoch, position = divmod(g, n)
    key = _epoch_key(seed, epoch)
    position = _feistel(position, n, key)
    while position >= n:
        position = _feistel(position, n, key)
    return position


def _epoch_key(seed: int, epoch: Words) -> Any:
    """Returns the number of an epoch's permutation; of an array of epochs, those of all."""
    return _mix(_mix(seed) + _WEYL * epoch)


def generator(seed: int, g: int, stream: str) -> np.random.Generator:
    """Returns the random numbers that sample `g` spends on the purpose named `stream`.

    Philox is counter based: (seed, g) is its key, and the name sets the high words of its counter,
    which draws never change. So streams do not overlap, and none has to be drawn to reach another.
    """
    name = np.frombuffer(hashlib.sha256(stream.encode()).digest()[:24], "<u8")
    key = np.array([seed & _MASK64, g & _MASK64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, *name.tolist()]))


def sample_of(step: int, row: int, batch_size: int, images: int) -> tuple[int, bool]:
    """Returns the sample number of a row of a step's global batch, and whether it is an image.

    The first `images` rows are images; images and videos are counted apart.
    """
    if row < images:
        return step * images + row, True
    return step * (batch_size - images) + row - images, False


def image_rows(batch_size: int, image_fraction: float) -> int:
    """Returns how many rows of each global batch are images (half of them in the paper).

    Raises:
      ConfigError: the fraction lies outside [0, 1] or gives no whole number of rows.
    """
    if not 0 <= image_fraction <= 1:
        raise ConfigError(
            f"data.image_fraction = {image_fraction} is outside [0, 1]; the paper trains with 0.5"
        )
    rows = round(batch_size * image_fraction)
    if not math.isclose(rows, batch_size * image_fraction, abs_tol=1e-6):
        raise ConfigError(
            f"data.image_fraction = {image_fraction} of {batch_size} rows is not a whole number;"
            f" the nearest that is: {rows / batch_size:.6g} ({rows} rows), or another"
            " training.batch_size"
        )
    return rows
