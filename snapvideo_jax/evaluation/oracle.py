"""The oracle: reads shape, color, direction and speed back from videos of the embedded set.

It is NumPy alone and nothing in it is learned, so its verdicts never change. It fits one moving
shape of `snapvideo_jax.data.shapes` to the pixels: background and color from the statistics of all
pixels, a track from a matched filter, a straight line through the track, and then each shape
rendered along that line. A factor counts as right only where the fit explains the pixels, so that
noise and blank or shuffled videos score 0 rather than chance.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float, Shaped, UInt8

from snapvideo_jax.data.outlines import coverage
from snapvideo_jax.data.shapes import parse
from snapvideo_jax.data.world import COLORS, DIRECTIONS, World

STILL = 0.15  # px per frame below which a shape counts as not moving
MIN_EXPLAINED = 0.5
MIN_CONTRAST = 0.6

FACTORS = ("shape", "color", "direction", "speed")
# Each rate of `score`, and the factors that must all be right for it.
_SETS = {name: (name,) for name in FACTORS} | {"all3": ("shape", "color", "direction")}
# (y, x) px by which the track may miss the centroid: it is biased where shapes are lopsided.
_OFFSETS = np.array([(y, x) for y in (-0.5, 0, 0.5) for x in (-0.5, 0, 0.5)], np.float32)


class Reading(NamedTuple):
    """The facts that the oracle reads from one video. Levels are in [-1, 1], lengths in pixels."""

    present: bool  # one shape of the world is there and explains what moves
    shape: str
    color: str
    direction: str  # "still" below `STILL`
    speed: str | None  # None if still, or if the frame interval is 0
    velocity: tuple[float, float]  # (vy, vx) px per frame
    explained: float  # fraction of the energy around the shape that the shape accounts for
    contrast: float  # distance of the shape's color from the background's
    clutter: float  # rms deviation from the background away from the shape
    background_error: float  # mean absolute error of the background's three levels
    frame_change: float  # largest rms change between successive frames


def read(
    video: UInt8[np.ndarray, "T H W 3"] | Float[np.ndarray, "T H W 3"],
    world: World,
    frame_interval: float,
) -> Reading:
    """Reads the factors of one video.

    Args:
        video: uint8, or floats in [-1, 1]; T, H and W need not be the world's.
        world: the shapes, colors, directions and speeds to choose from, and the radius.
        frame_interval: seconds between frames, 0 for an image.

    Returns:
        The best fit, whether or not it is a good one: see `Reading.present`.
    """
    levels = _levels(video)
    background = np.median(levels, axis=(0, 1, 2))
    deviation = levels - background
    track = _track(_along_principal_color(deviation), world.radius)
    start, velocity = _fit_line(track)
    line = start + np.arange(len(levels))[:, None] * velocity
    fit = _fit_shape(deviation, line, world)
    contrast = float(np.linalg.norm(fit.color))
    return Reading(
        present=fit.explained > MIN_EXPLAINED and contrast > MIN_CONTRAST,
        shape=fit.shape,
        color=_nearest_color(background + fit.color, world.colors),
        direction=_direction(velocity, world.directions),
        speed=_speed(velocity, frame_interval, world.speeds),
        velocity=(float(velocity[0]), float(velocity[1])),
        explained=fit.explained,
        contrast=contrast,
        clutter=fit.clutter,
        background_error=float(abs(background - world.background).mean()),
        frame_change=_frame_change(levels),
    )


def score(
    videos: Sequence[Shaped[np.ndarray, "T H W 3"]],
    captions: Sequence[str],
    world: World,
    frame_intervals: Sequence[float],
) -> dict:
    """Scores how often videos show what their captions state.

    Args:
        videos: n videos as `read` takes them.
        captions: n captions or paraphrases.
        world: the one that the videos are of.
        frame_intervals: n times between frames in seconds, 0 for images.

    Returns:
        n.
        Rates in [0, 1]: present, shape, color, direction, speed, all3 (shape, color and direction)
        and all (every fact of the caption; one without a direction means a still). Each is over the
        captions that state it, and None where none does.
        Means: explained, clutter, and velocity_mae, the length of the velocity's error in px per
        frame, over present videos whose caption fixes the velocity; None where there are none.
        wilson95: the (low, high) 95 % interval of each rate.

    Raises:
        ValueError: unequal numbers of videos, captions and intervals, or none of them.
    """
    readings = [read(v, world, i) for v, i in zip(videos, frame_intervals, strict=True)]
    if not readings:
        raise ValueError("score needs at least one video")
    facts = [parse(text) for text in captions]
    verdicts = [_verdicts(r, f) for r, f in zip(readings, facts, strict=True)]
    names = ("present", *_SETS, "all")
    rights = {name: [v[name] for v in verdicts if name in v] for name in names}
    errors = [
        error
        for reading, fact, interval in zip(readings, facts, frame_intervals, strict=True)
        if (error := _velocity_error(reading, fact, world, interval)) is not None
    ]
    return {
        "n": len(readings),
        **{name: _mean(right) for name, right in rights.items()},
        "velocity_mae": _mean(errors),
        "explained": _mean([r.explained for r in readings]),
        "clutter": _mean([r.clutter for r in readings]),
        "wilson95": {name: _wilson95(right) for name, right in rights.items()},
    }


def chance(world: World) -> dict[str, float]:
    """Returns the rates of a model that draws one legal moving shape and ignores the caption."""
    counts = (world.shapes, world.colors, world.directions, world.speeds)
    rates = {name: 1 / len(values) for name, values in zip(FACTORS, counts, strict=True)}
    all3 = rates["shape"] * rates["color"] * rates["direction"]
    return rates | {"all3": all3, "all": all3 * rates["speed"]}


class _Fit(NamedTuple):
    """The shape and color that explain a video best."""

    shape: str
    color: Float[np.ndarray, "3"]  # deviation from the background
    explained: float
    clutter: float


def _levels(video: Shaped[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W 3"]:
    """Returns float levels; those that are not finite become legal, so any video can be read."""
    if video.dtype == np.uint8:
        return video.astype(np.float32) / np.float32(127.5) - 1
    return np.nan_to_num(video.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)


def _along_principal_color(d: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W"]:
    """Projects onto the color in which the pixels vary most, with the shape positive."""
    flat = d.reshape(-1, 3)
    axis = np.linalg.eigh(flat.T @ flat)[1][:, -1]
    along = flat @ axis
    # The shape deviates far and the background little, so the heavier tail is the shape's.
    sign = 1.0 if along @ np.linalg.norm(flat, axis=1) >= 0 else -1.0
    return (sign * along).reshape(d.shape[:3])


def _track(g: Float[np.ndarray, "T H W"], radius: float) -> Float[np.ndarray, "T 2"]:
    """Tracks the shape's centroid (y, x): by a matched filter, then by windowed centroids."""
    _, height, width = g.shape
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    weight = np.where(g > 0.25 * np.percentile(g, 99.5), g, 0).clip(0)
    centers = _peaks(g, radius)
    for _ in range(4):
        near = _distance(centers, y, x) <= _window(radius)
        inside = np.where(near, weight, 0)
        rows, columns = inside.sum(2), inside.sum(1)
        mass = rows.sum(1)
        centroids = np.stack([rows @ y, columns @ x], 1) / np.maximum(mass, 1e-12)[:, None]
        centers = np.where(mass[:, None] > 0, centroids, centers)
    return centers


def _peaks(g: Float[np.ndarray, "T H W"], radius: float) -> Float[np.ndarray, "T 2"]:
    """Returns the place in each frame where a disc of `radius` covers most of g."""
    reach = math.ceil(radius)
    padded = (g.shape[1] + 2 * reach, g.shape[2] + 2 * reach)  # so that nothing wraps around
    filtered = np.fft.irfft2(np.fft.rfft2(g, padded) * _disc(radius, padded), padded)
    filtered = filtered[:, reach : reach + g.shape[1], reach : reach + g.shape[2]]
    index = filtered.reshape(len(g), -1).argmax(1)
    return np.stack(np.unravel_index(index, g.shape[1:]), 1).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _disc(radius: float, padded: tuple[int, int]) -> Complex[np.ndarray, "H F"]:
    """Returns the Fourier transform of the disc, centered at (ceil(radius), ceil(radius))."""
    offsets = np.arange(2 * math.ceil(radius) + 1) - math.ceil(radius)
    return np.fft.rfft2(coverage("circle", radius, offsets[:, None], offsets), padded)


def _fit_line(
    track: Float[np.ndarray, "T 2"],
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Fits start and velocity of constant motion: least squares, robust to frames off the line."""
    time = np.arange(len(track), dtype=np.float64)
    weight = np.ones(len(track))
    for _ in range(5):
        mean_time, mean = np.average(time, weights=weight), np.average(track, 0, weights=weight)
        spread = weight * (time - mean_time)
        velocity = spread @ (track - mean) / max(spread @ (time - mean_time), 1e-12)
        start = mean - mean_time * velocity
        residual = np.linalg.norm(track - start - time[:, None] * velocity, axis=1)
        weight = 1 / (1 + (residual / 0.5) ** 2)
    return start, velocity


def _fit_shape(
    d: Float[np.ndarray, "T H W 3"], line: Float[np.ndarray, "T 2"], world: World
) -> _Fit:
    """Fits the shape, half-pixel offset and color that leave the least energy around the line."""
    y, x = (np.arange(size, dtype=np.float32) for size in d.shape[1:3])
    inside = _distance(line, y, x) <= _window(world.radius)
    frame, row, column = np.nonzero(inside)
    pixels = d[inside]
    dy = (y[row] - line[frame, 0]).astype(np.float32) - _OFFSETS[:, :1]
    dx = (x[column] - line[frame, 1]).astype(np.float32) - _OFFSETS[:, 1:]
    alpha = np.concatenate([coverage(shape, world.radius, dy, dx) for shape in world.shapes])
    projected, mass = alpha @ pixels, np.maximum((alpha * alpha).sum(1), 1e-12)
    gains = (projected**2).sum(1) / mass  # energy that the least-squares color removes
    best = int(gains.argmax())
    energy = float((pixels**2).sum())
    outside = float((d**2).sum()) - energy
    return _Fit(
        shape=world.shapes[best // len(_OFFSETS)],
        color=projected[best] / mass[best],
        explained=float(gains[best]) / max(energy, 1e-12),
        clutter=math.sqrt(max(outside, 0) / max(3 * (inside.size - len(pixels)), 1)),
    )


def _window(radius: float) -> float:
    """Returns the distance from the centroid within which any shape of this radius lies."""
    return 1.45 * radius + 1.5


def _distance(
    centers: Float[np.ndarray, "T 2"], y: Float[np.ndarray, " H"], x: Float[np.ndarray, " W"]
) -> Float[np.ndarray, "T H W"]:
    """Returns how far each pixel is from the center of its frame."""
    dy, dx = y - centers[:, :1], x - centers[:, 1:]
    return np.sqrt(dy[:, :, None] ** 2 + dx[:, None, :] ** 2)


def _nearest_color(rgb: Float[np.ndarray, "3"], names: tuple[str, ...]) -> str:
    return min(names, key=lambda name: math.dist(COLORS[name], rgb))


def _direction(velocity: Float[np.ndarray, "2"], names: tuple[str, ...]) -> str:
    if np.linalg.norm(velocity) < STILL:
        return "still"
    return max(names, key=lambda name: float(velocity @ DIRECTIONS[name]))


def _speed(
    velocity: Float[np.ndarray, "2"], frame_interval: float, speeds: tuple[tuple[str, float], ...]
) -> str | None:
    step = float(np.linalg.norm(velocity))
    if step < STILL or frame_interval <= 0:
        return None
    return min(speeds, key=lambda s: abs(math.log(step / frame_interval / s[1])))[0]


def _frame_change(levels: Float[np.ndarray, "T H W 3"]) -> float:
    if len(levels) < 2:
        return 0.0
    return float(np.sqrt((np.diff(levels, axis=0) ** 2).mean((1, 2, 3)).max()))


def _verdicts(reading: Reading, facts: dict[str, str]) -> dict[str, bool]:
    """Returns for each rate whose factors the `facts` state whether the video gets them right."""
    right = {f: reading.present and getattr(reading, f) == facts[f] for f in facts}
    sets = {name: all(right[f] for f in s) for name, s in _SETS.items() if right.keys() >= set(s)}
    direction = facts.get("direction", "still")
    everything = reading.present and all(right.values()) and reading.direction == direction
    return {"present": reading.present} | sets | {"all": everything}


def _velocity_error(
    reading: Reading, facts: dict[str, str], world: World, frame_interval: float
) -> float | None:
    """Returns px per frame; None if nothing is present or the caption leaves the velocity open."""
    speeds, moves = dict(world.speeds), "direction" in facts
    if not reading.present or (moves and facts.get("speed") not in speeds):
        return None
    step = speeds[facts["speed"]] * frame_interval if moves else 0.0
    y, x = DIRECTIONS[facts["direction"]] if moves else (0, 0)
    return math.dist(reading.velocity, (y * step, x * step))


def _mean(values: Sequence[float] | Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _wilson95(right: Sequence[bool]) -> tuple[float, float] | None:
    """Returns Wilson's interval of the rate behind the observed verdicts."""
    if not right:
        return None
    n, rate, z = len(right), float(np.mean(right)), 1.959964
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)
