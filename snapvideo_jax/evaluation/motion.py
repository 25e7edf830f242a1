"""Measures of motion without weights: flicker, smoothness, dynamic degree.

They ask what VBench (Huang et al. 2024) asks of AMT and RAFT, with block matching in their places:
compare them with each other, not with VBench's tables. Only flicker is VBench's own formula.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from snapvideo_jax.errors import DataError

Video = Shaped[np.ndarray, "T ..."]  # uint8 [T, H, W, 3]; `_check` refuses any other
Gray = Float[np.ndarray, "H W"]
Vectors = Int[np.ndarray, "h w 2"]  # (y, x) of each block

BLOCK = 8  # pixels of a block's side
FASTEST = 0.05  # fraction of the blocks whose speed counts; VBench's share of pixels
THRESHOLD = 6 / 256  # of the short side, a pair of frames; VBench's 6 pixels at 256
MOVES = 0.5  # a block moves only where that leaves less than this fraction of its difference


def flicker(video: Video) -> float:
    """F = 1 - mean |x_{t+1} - x_t| / 255: VBench's temporal flickering, meant for still scenes."""
    _check(video, 2)
    return 1 - float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean()) / 255


def smoothness(video: Video, reach: int = 4) -> float:
    """S = 1 - mean |x_t - x'_t| / 255 over odd t, x' between the frames before and after.

    A block of x' is the mean of the two patches that lie opposite each other around it, at most
    `reach` pixels away in either frame, and match best.
    """
    _check(video, 3)
    errors = [
        np.abs(video[t] - interpolate(video[t - 1], video[t + 1], reach)).mean()
        for t in range(1, len(video) - 1, 2)
    ]
    return 1 - float(np.mean(errors)) / 255


def interpolate(
    before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"], reach: int
) -> Float[np.ndarray, "H W 3"]:
    """Returns the frame halfway between two, by symmetric block matching."""
    a, b = before.astype(np.float32), after.astype(np.float32)
    candidates = _candidates(reach)
    pairs = ((_shift(a, -v), _shift(b, v)) for v in candidates)
    vectors = _best([_block_means(np.abs(p - q).mean(-1)) for p, q in pairs], candidates)
    height, width = a.shape[:2]
    per_pixel = vectors.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
    y, x = np.ogrid[:height, :width]
    take = lambda frame, sign: frame[
        (y + sign * per_pixel[..., 0]).clip(0, height - 1),
        (x + sign * per_pixel[..., 1]).clip(0, width - 1),
    ]
    return (take(a, -1) + take(b, 1)) / 2


def displacements(before: Gray, after: Gray, reach: int) -> Vectors:
    """Returns where each block of `before` lies in `after`, at most `reach` pixels away."""
    candidates = _candidates(reach)
    costs = [_block_means(np.abs(before - _shift(after, v))) for v in candidates]
    return _best(costs, candidates)


def speeds(video: Video, reach: int = 8) -> Float[np.ndarray, " T-1"]:
    """Returns for each pair of frames the mean length, in pixels, of the fastest 5 % of vectors."""
    _check(video, 2)
    gray = video.astype(np.float32).mean(-1)
    pairs = zip(gray[:-1], gray[1:], strict=True)
    lengths = [np.linalg.norm(displacements(a, b, reach), axis=-1).ravel() for a, b in pairs]
    count = max(1, round(FASTEST * lengths[0].size))
    return np.array([np.sort(each)[-count:].mean() for each in lengths])


def is_dynamic(speeds: Float[np.ndarray, " _"], short_side: int) -> bool:
    """Returns whether a quarter of the pairs are fast; over many videos, the dynamic degree.

    VBench's rule: faster than 6 pixels where the short side has 256, in 4 of 16 frames.

    Args:
        speeds: of the pairs of frames, in pixels.
        short_side: of the video, in pixels.
    """
    fast = speeds > THRESHOLD * short_side
    return bool(fast.sum() >= max(1, round((len(speeds) + 1) / 4)))


def _check(video: Video, frames: int) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or len(video) < frames:
        raise DataError(
            f"a measure of motion needs uint8 [T, H, W, 3] of {frames} or more frames, has "
            f"{video.dtype} {video.shape}"
        )


def _candidates(reach: int) -> Int[np.ndarray, "K 2"]:
    """Returns all displacements, the shortest first, so that ties go to it."""
    span = np.arange(-reach, reach + 1)
    grid = np.stack(np.meshgrid(span, span, indexing="ij"), -1).reshape(-1, 2)
    return grid[np.argsort((grid**2).sum(1), kind="stable")]


def _shift(
    frame: Float[np.ndarray, "H W *C"], v: Int[np.ndarray, "2"]
) -> Float[np.ndarray, "H W *C"]:
    """Returns s with s[p] = frame[p + v]; the frame's edge goes on outside."""
    y, x = (np.arange(n) + int(d) for n, d in zip(frame.shape[:2], v, strict=True))
    return frame[y.clip(0, frame.shape[0] - 1)][:, x.clip(0, frame.shape[1] - 1)]


def _block_means(x: Gray) -> Float[np.ndarray, "h w"]:
    """Returns the mean of each block; those at the far edges may be smaller."""
    rows, columns = (np.arange(0, n, BLOCK) for n in x.shape)
    sums = np.add.reduceat(np.add.reduceat(x, rows, axis=0), columns, axis=1)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(x), rows, axis=0), columns, axis=1)
    return sums / counts


def _best(costs: list[Float[np.ndarray, "h w"]], candidates: Int[np.ndarray, "K 2"]) -> Vectors:
    """Returns the cheapest vector of each block; 0 where no other is clearly cheaper."""
    stacked = np.stack(costs)
    best = stacked.argmin(0)
    still = stacked.min(0) >= MOVES * stacked[0]
    return np.where(still[..., None], 0, candidates[best])
