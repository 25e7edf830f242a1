"""The embedded data set: captioned videos of one moving shape, drawn on the fly.

Example g is a pure function of (seed, g): nothing is downloaded and nothing is stored. All shapes
have the same area, so that area is no cue. Speeds are in pixels per second, so that frame-rate
conditioning shows in the pixels. A fixed sixth of the (shape, color, direction) triples is held out
of training, so that composition can be measured apart from recall.
"""

import dataclasses
import functools
import itertools
import math
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8

from snapvideo_jax.errors import ConfigError

# Training sees g < VALIDATION_START; validation and test start here and never overlap it.
VALIDATION_START = 2**40
TEST_START = 2**41

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

# Half side of the square, inradius of the equilateral triangle and arm width of the cross that
# have the area of a disc of radius 1.
_SQUARE = math.sqrt(math.pi) / 2
_TRIANGLE = math.sqrt(math.pi / math.sqrt(27))
_CROSS = math.sqrt(math.pi / 5)

# How far each shape reaches up, down and sideways from its centroid, in radii.
_REACH = {
    "circle": (1.0, 1.0, 1.0),
    "square": (_SQUARE, _SQUARE, _SQUARE),
    "triangle": (2 * _TRIANGLE, _TRIANGLE, math.sqrt(3) * _TRIANGLE),
    "cross": (1.5 * _CROSS, 1.5 * _CROSS, 1.5 * _CROSS),
}
SHAPES = tuple(_REACH)

# Independent random streams of one example: the high word of the Philox counter.
_SCENE_STREAM, _CAPTION_STREAM = 1, 2


class Composition(NamedTuple):
    """The facts that a caption can state about a video; an image has no direction and no speed."""

    shape: str
    color: str
    direction: str | None
    speed: str | None


class Scene(NamedTuple):
    """Everything that determines one example's pixels."""

    shape: str
    color: str
    direction: str | None  # None for an image
    speed: str | None  # None for an image
    frame_rate: float  # frames per second; 0 for an image
    start: tuple[float, float]  # (y, x) of the centroid in frame 0; pixel centers are integers


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


def is_held_out(world: World, shape: str, color: str, direction: str) -> bool:
    """Returns whether training never shows this triple: (s + 2c + 3d) mod 6 = 0 by index."""
    s, c = world.shapes.index(shape), world.colors.index(color)
    return (s + 2 * c + 3 * world.directions.index(direction)) % 6 == 0


def compositions(world: World, held_out: bool) -> list[Composition]:
    """Returns the compositions of videos that training shows or, held out, never shows."""
    return list(_compositions(world, held_out))


def draw_scene(world: World, seed: int, g: int, *, image: bool, held_out: bool = False) -> Scene:
    """Draws example g, a pure function of the arguments.

    Args:
        world: everything that can be drawn.
        seed: data seed, in [0, 2**64).
        g: global example index, in [0, 2**64).
        image: whether the scene is a still, whose shape and color are independent; none of these
            pairs is held out.
        held_out: whether to draw triples that training never shows, instead of those it shows.

    Returns:
        A scene whose shape stays inside the frame. Compositions, frame rates and start positions
        (the middle part of the legal ones that the world's `spread` allows) are uniform.

    Raises:
        ValueError: `held_out` for an image, or for a world that holds nothing out.
    """
    random = _random(seed, g, _SCENE_STREAM)
    legal = _compositions(world, held_out) if not image else _image_compositions(world)
    if not legal or (image and held_out):
        raise ValueError(f"no held-out scene to draw (image={image}): use held_out=False")
    composition = legal[random.integers(len(legal))]
    frame_rate = 0.0 if image else float(world.frame_rates[random.integers(len(world.frame_rates))])
    low, high = _start_range(world, composition, frame_rate)
    y, x = low + (high - low) * (0.5 + world.spread * (random.random(2) - 0.5))
    return Scene(*composition, frame_rate, (float(y), float(x)))


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


def render(world: World, scene: Scene) -> UInt8[np.ndarray, "T H W 3"]:
    """Renders the scene's frames, anti-aliased; gray level -1 is 0 and 1 is 255."""
    velocity = np.array(velocity_of(world, scene, scene.frame_rate))
    centers = np.array(scene.start) + np.arange(world.num_frames)[:, None] * velocity
    dy = np.arange(world.height) - centers[:, :1]
    dx = np.arange(world.width) - centers[:, 1:]
    dy, dx = dy.astype(np.float32)[:, :, None], dx.astype(np.float32)[:, None, :]
    alpha = coverage(scene.shape, world.radius, dy, dx)
    video = np.empty((*alpha.shape, 3), np.uint8)
    bottom = (world.background + 1) * 127.5
    for channel, level in enumerate(COLORS[scene.color]):  # a trailing axis of 3 broadcasts slowly
        top = (level + 1) * 127.5
        video[..., channel] = alpha * np.float32(top - bottom) + np.float32(bottom + 0.5)
    return video


def velocity_of(world: World, facts: Scene | Composition, frame_rate: float) -> tuple[float, float]:
    """Returns (vy, vx) in pixels per frame at `frame_rate` (1/s); (0, 0) for an image."""
    if facts.direction is None or facts.speed is None:
        return 0.0, 0.0
    step = dict(world.speeds)[facts.speed] / frame_rate
    y, x = DIRECTIONS[facts.direction]
    return y * step, x * step


def caption(scene: Scene | Composition, speed: bool = True) -> str:
    """Describes the scene, e.g. "a red circle moves left slowly"; the last word only if `speed`."""
    text = f"a {scene.color} {scene.shape}"
    if scene.direction is None:
        return text
    return f"{text} moves {scene.direction}" + (f" {scene.speed}" if speed else "")


def training_caption(scene: Scene, seed: int, g: int) -> str:
    """Returns the caption of example g in training, a pure function of the arguments.

    For a quarter of the videos it states no speed, so that training knows such prompts too.
    """
    return caption(scene, speed=_random(seed, g, _CAPTION_STREAM).random() >= 0.25)


def paraphrases(scene: Scene | Composition) -> list[str]:
    """Returns captions that state the same facts in sentences that training never shows."""
    thing = f"{scene.color} {scene.shape}"
    if scene.direction is None:
        return [f"there is a {thing}"]
    return [
        f"a {scene.speed} {scene.direction}-moving {thing}",
        f"there is a {thing} moving {scene.direction} {scene.speed}",
    ]


def parse(text: str) -> dict[str, str]:
    """Returns the facts that `text` states: factor (shape, color, direction or speed) -> word.

    The first word of a factor counts; words of no factor are ignored.
    """
    facts: dict[str, str] = {}
    for word in re.findall("[a-z]+", text.lower()):
        if word in _FACTOR_OF:
            facts.setdefault(_FACTOR_OF[word], word)
    return facts


def all_captions(world: World) -> list[str]:
    """Returns every caption that training can show, sorted."""
    videos = _compositions(world, False)
    captions = {caption(c, speed) for c in videos for speed in (True, False)}
    return sorted(captions | {caption(c) for c in _image_compositions(world)})


def example(
    world: World, seed: int, g: int, *, image: bool
) -> tuple[UInt8[np.ndarray, "T H W 3"], str, float, tuple[int, int]]:
    """Returns training example g: video, caption, frame interval (seconds; 0: image), (H, W)."""
    scene = draw_scene(world, seed, g, image=image)
    frame_interval = 0.0 if image else 1 / scene.frame_rate
    words = training_caption(scene, seed, g)
    return render(world, scene), words, frame_interval, (world.height, world.width)


_FACTOR_OF = (
    dict.fromkeys(SHAPES, "shape")
    | dict.fromkeys(COLORS, "color")
    | dict.fromkeys(DIRECTIONS, "direction")
    | dict.fromkeys(SPEED_WORDS, "speed")
)


def _random(seed: int, g: int, stream: int) -> np.random.Generator:
    """Returns the generator of one stream of example g."""
    key, counter = np.array([seed, g], np.uint64), np.array([0, 0, 0, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@functools.lru_cache
def _compositions(world: World, held_out: bool) -> tuple[Composition, ...]:
    words = [word for word, _ in world.speeds]
    every = itertools.product(world.shapes, world.colors, world.directions, words)
    return tuple(Composition(*c) for c in every if is_held_out(world, *c[:3]) == held_out)


@functools.lru_cache
def _image_compositions(world: World) -> tuple[Composition, ...]:
    pairs = itertools.product(world.shapes, world.colors)
    return tuple(Composition(shape, color, None, None) for shape, color in pairs)


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


def _start_range(
    world: World, facts: Composition, frame_rate: float
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Returns the lowest and highest (y, x) in frame 0 of a shape that stays inside the frame."""
    up, down, side = (world.radius * reach for reach in _REACH[facts.shape])
    travel = (world.num_frames - 1) * np.array(velocity_of(world, facts, frame_rate))
    low = np.array([up, side]) - 0.5  # pixel 0 begins at -0.5
    high = np.array([world.height - down, world.width - side]) - 0.5
    return low - np.minimum(travel, 0), high - np.maximum(travel, 0)


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
        up, down, side = _REACH[shape]
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
    shown = {name for composition in _compositions(world, False) for name in composition}
    missing = {*world.shapes, *world.colors, *world.directions} - shown
    if missing:
        raise ConfigError(
            f"World: {sorted(missing)} would appear in held-out triples only:"
            " use two or more shapes, colors and directions"
        )
