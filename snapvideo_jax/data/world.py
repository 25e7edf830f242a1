"""What the embedded data set can show: its shapes, colors and motions, and which are held out."""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple

from snapvideo_jax.data.outlines import REACH, SHAPES
from snapvideo_jax.errors import ConfigError

COLORS = {  # corners of the RGB cube [-1, 1]^3: any two are at least 2 apart
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "yellow": (1.0, 1.0, -1.0),
    "magenta": (1.0, -1.0, 1.0),
    "cyan": (-1.0, 1.0, 1.0),
    "white": (1.0, 1.0, 1.0),
}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x), y down
SPEED_WORDS = ("slowly", "quickly")

MIN_MOTION = 0.3  # pixels per frame; slower motion looks like rest in a short clip
MIN_CONTRAST = 0.8  # distance in RGB; a shape nearer to the background cannot be made out


class Composition(NamedTuple):
    """The facts that a caption can state about a video; an image has no direction and no speed."""

    shape: str
    color: str
    direction: str | None
    speed: str | None


@dataclasses.dataclass(frozen=True)
class World:
    """Everything that can be drawn; ConfigError where the parts do not fit together.

    Attributes:
        num_frames: frames T of every example.
        height: H in pixels.
        width: W in pixels.
        radius: pixels, of the circle; the other shapes have its area.
        shapes: some of `SHAPES`.
        colors: some of `COLORS`.
        directions: some of `DIRECTIONS`.
        speeds: (word, pixels per second) pairs, words from `SPEED_WORDS`.
        frame_rates: frames per second that videos are shown at.
        background: gray level in [-1, 1].
        spread: fraction in [0, 1] of the legal start positions that occur; 0: only the middle one.
    """

    num_frames: int
    height: int
    width: int
    radius: float
    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    directions: tuple[str, ...]
    speeds: tuple[tuple[str, float], ...]
    frame_rates: tuple[float, ...]
    background: float = -0.8
    spread: float = 1.0

    def __post_init__(self):
        _check_names("shapes", self.shapes, SHAPES)
        _check_names("colors", self.colors, tuple(COLORS))
        _check_names("directions", self.directions, tuple(DIRECTIONS))
        _check_names("speeds", tuple(word for word, _ in self.speeds), SPEED_WORDS)
        _check_numbers(self)
        _check_motion(self)
        _check_training_covers(self)


def is_held_out(world: World, shape: str, color: str, direction: str | None) -> bool:
    """Returns whether training never shows this triple: (s + 2c + 3d) mod 6 = 0 by index."""
    s, c = world.shapes.index(shape), world.colors.index(color)
    return (s + 2 * c + 3 * world.directions.index(direction)) % 6 == 0


@functools.lru_cache
def compositions(world: World, held_out: bool) -> tuple[Composition, ...]:
    """Returns the compositions of videos that training shows or, held out, never shows."""
    words = [word for word, _ in world.speeds]
    combinations = itertools.product(world.shapes, world.colors, world.directions, words)
    facts = [Composition(*combination) for combination in combinations]
    return tuple(c for c in facts if is_held_out(world, c.shape, c.color, c.direction) == held_out)


@functools.lru_cache
def image_compositions(world: World) -> tuple[Composition, ...]:
    """Returns the compositions of images; none of them is held out."""
    pairs = itertools.product(world.shapes, world.colors)
    return tuple(Composition(shape, color, direction=None, speed=None) for shape, color in pairs)


def _check_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(f"World.{field} is {names}: give one or more of {known}, each once")


def _check_numbers(world: World) -> None:
    sizes = (world.num_frames, world.height, world.width, world.radius)
    rates = (*world.frame_rates, *(speed for _, speed in world.speeds))
    if min(sizes) <= 0 or not world.frame_rates or min(rates) <= 0:
        raise ConfigError(f"World sizes {sizes} and rates, speeds {rates}: all must be positive")
    if world.num_frames < 2:
        raise ConfigError(f"World.num_frames is {world.num_frames}: motion needs at least 2")
    if not -1 <= world.background <= 1:
        raise ConfigError(f"World.background is {world.background}: give a level in [-1, 1]")
    if not 0 <= world.spread <= 1:
        raise ConfigError(f"World.spread is {world.spread}: give a share in [0, 1]")
    for color in world.colors:
        if math.dist(COLORS[color], (world.background,) * 3) < MIN_CONTRAST:
            raise ConfigError(f"World.background {world.background} hides {color}: leave one out")


def _check_motion(world: World) -> None:
    """Raises ConfigError unless the slowest scene visibly moves and the fastest stays inside."""
    word, speed = min(world.speeds, key=lambda s: s[1])
    needed = MIN_MOTION * max(world.frame_rates)
    if speed < needed:
        raise ConfigError(
            f"World.speeds: {word} {speed:g} px/s is below {MIN_MOTION} px per frame at"
            f" {max(world.frame_rates):g} frames/s: use at least {_up(needed)} px/s"
        )
    word, speed = max(world.speeds, key=lambda s: s[1])
    seconds = (world.num_frames - 1) / min(world.frame_rates)
    legal_radius, legal_speed = _legal_motion(world, speed * seconds, seconds)
    if world.radius <= legal_radius + 1e-9:
        return
    advice = [f"radius <= {_down(legal_radius)} px"] if legal_radius > 0 else []
    advice += [f"{word} <= {_down(legal_speed)} px/s"] if legal_speed >= needed else []
    raise ConfigError(
        f"World: shapes of radius {world.radius:g} px that move {speed * seconds:g} px ({word},"
        f" {speed:g} px/s) leave the {world.height} x {world.width} px frame:"
        f" use {' or '.join(advice) or 'a larger frame'}"
    )


def _legal_motion(world: World, travel: float, seconds: float) -> tuple[float, float]:
    """Returns the largest radius that may move `travel` px, and the world's largest px/s."""
    radius, speed = math.inf, math.inf
    for shape in world.shapes:
        up, down, side = REACH[shape]
        for axis, size, reach in ((0, world.height, up + down), (1, world.width, 2 * side)):
            moves = any(DIRECTIONS[name][axis] for name in world.directions)
            radius = min(radius, (size - travel * moves) / reach)
            if moves:
                speed = min(speed, (size - reach * world.radius) / seconds)
    return radius, speed


def _down(value: float) -> str:
    return f"{math.floor(value * 100) / 100:g}"


def _up(value: float) -> str:
    return f"{math.ceil(value * 100 - 1e-9) / 100:g}"


def _check_training_covers(world: World) -> None:
    shown = {name for composition in compositions(world, False) for name in composition}
    missing = {*world.shapes, *world.colors, *world.directions} - shown
    if missing:
        raise ConfigError(
            f"World: {sorted(missing)} would appear in held-out triples only:"
            " use two or more shapes, colors and directions"
        )
