"""The outlines of the shapes, which all have the area of a disc of the same radius."""

import math

import numpy as np
from jaxtyping import Float, Num

# Half side of the square, inradius of the equilateral triangle and arm width of the cross that
# have the area of a disc of radius 1.
_SQUARE = math.sqrt(math.pi) / 2
_TRIANGLE = math.sqrt(math.pi / math.sqrt(27))
_CROSS = math.sqrt(math.pi / 5)

# How far each shape reaches up, down and sideways from its centroid, in radii.
REACH = {
    "circle": (1.0, 1.0, 1.0),
    "square": (_SQUARE, _SQUARE, _SQUARE),
    "triangle": (2 * _TRIANGLE, _TRIANGLE, math.sqrt(3) * _TRIANGLE),
    "cross": (1.5 * _CROSS, 1.5 * _CROSS, 1.5 * _CROSS),
}
SHAPES = tuple(REACH)


def coverage(
    shape: str, radius: float, dy: Num[np.ndarray, "*#p"], dx: Num[np.ndarray, "*#p"]
) -> Float[np.ndarray, "*p"]:
    """Returns the fraction of a pixel that the shape covers, by its distance from the outline.

    Args:
        shape: one of `SHAPES`.
        radius: pixels, of the disc of equal area.
        dy: pixels down from the shape's centroid to the pixel's center; broadcasts against dx.
        dx: pixels to the right of it.
    """
    return np.clip(0.5 - _signed_distance(shape, radius, dy, dx), 0, 1)


def _signed_distance(shape: str, radius: float, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """Returns pixels from the outline, positive outside; near corners from the extended edge."""
    match shape:
        case "circle":
            return np.sqrt(dy * dy + dx * dx) - radius
        case "square":
            return np.maximum(abs(dy), abs(dx)) - radius * _SQUARE
        case "triangle":  # apex up: the base lies at distance dy; the sides mirror each other
            sides = math.sqrt(0.75) * abs(dx) - 0.5 * dy
            return np.maximum(dy, sides) - radius * _TRIANGLE
        case "cross":
            long, short = 1.5 * radius * _CROSS, 0.5 * radius * _CROSS
            y, x = abs(dy), abs(dx)
            return np.minimum(np.maximum(y - long, x - short), np.maximum(y - short, x - long))
    raise ValueError(f"shape {shape!r} is none of {SHAPES}")
