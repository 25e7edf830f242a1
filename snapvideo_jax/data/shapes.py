"""The embedded data set: captioned videos of one moving shape, drawn on the fly.

Example g is a pure function of (seed, g): nothing is downloaded and nothing is stored. All shapes
have the same area, so that area is no cue. Speeds are in pixels per second, so that frame-rate
conditioning shows in the pixels. A fixed sixth of the (shape, color, direction) triples is held out
of training, so that composition can be measured apart from recall.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from snapvideo_jax.data.outlines import REACH, SHAPES, coverage
from snapvideo_jax.data.world import (
    COLORS,
    DIRECTIONS,
    SPEED_WORDS,
    Composition,
    World,
    compositions,
    image_compositions,
)

# Training sees g < VALIDATION_START; validation and test start here and never overlap it.
VALIDATION_START = 2**40
TEST_START = 2**41

# Independent random streams of one example: the high word of the Philox counter.
_SCENE_STREAM, _CAPTION_STREAM = 1, 2


class Scene(NamedTuple):
    """Everything that determines one example's pixels."""

    shape: str
    color: str
    direction: str | None  # None for an image
    speed: str | None  # None for an image
    frame_rate: float  # frames per second; 0 for an image
    start: tuple[float, float]  # (y, x) of the centroid in frame 0; pixel centers are integers


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
    legal = compositions(world, held_out) if not image else image_compositions(world)
    if not legal or (image and held_out):
        raise ValueError(f"no held-out scene to draw (image={image}): use held_out=False")
    composition = legal[random.integers(len(legal))]
    frame_rate = 0.0 if image else float(world.frame_rates[random.integers(len(world.frame_rates))])
    low, high = _start_range(world, composition, frame_rate)
    y, x = low + (high - low) * (0.5 + world.spread * (random.random(2) - 0.5))
    return Scene(**composition._asdict(), frame_rate=frame_rate, start=(float(y), float(x)))


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
    videos = compositions(world, False)
    captions = {caption(c, speed) for c in videos for speed in (True, False)}
    return sorted(captions | {caption(c) for c in image_compositions(world)})


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


def _start_range(
    world: World, facts: Composition, frame_rate: float
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Returns the lowest and highest (y, x) in frame 0 of a shape that stays inside the frame."""
    up, down, side = (world.radius * reach for reach in REACH[facts.shape])
    travel = (world.num_frames - 1) * np.array(velocity_of(world, facts, frame_rate))
    low = np.array([up, side]) - 0.5  # pixel 0 begins at -0.5
    high = np.array([world.height - down, world.width - side]) - 0.5
    return low - np.minimum(travel, 0), high - np.maximum(travel, 0)
