"""Factor vectors: what the oracle reads from videos of the embedded set, as features.

A Frechet distance or MMD of these sees wrong colors, wrong motion and broken shapes by name, needs
no network, and its errors lie in named coordinates. It knows the embedded set only.
"""

import numpy as np
from jaxtyping import Float, UInt8

from snapvideo_jax.data.world import World
from snapvideo_jax.evaluation import oracle


def names(world: World) -> list[str]:
    """Returns what each number of a vector is."""
    scalars = ["velocity y", "velocity x", "explained", "contrast", "clutter", "frame change"]
    return [*world.shapes, *world.colors, *scalars]


def vector(
    video: UInt8[np.ndarray, "T H W 3"], world: World, frame_interval: float
) -> Float[np.ndarray, " F"]:
    """Returns shape and color as ones among zeros, and then the numbers that `names` lists.

    Where nothing of the world is present, shape and color are all zeros.
    """
    reading = oracle.read(video, world, frame_interval)
    one_hot = lambda value, values: [float(reading.present and value == each) for each in values]
    return np.array(
        [
            *one_hot(reading.shape, world.shapes),
            *one_hot(reading.color, world.colors),
            *reading.velocity,
            reading.explained,
            reading.contrast,
            reading.clutter,
            reading.frame_change,
        ]
    )


def features(
    videos: UInt8[np.ndarray, "B T H W 3"], world: World, frame_interval: float
) -> Float[np.ndarray, "B F"]:
    """Returns the `vector` of each video."""
    return np.stack([vector(video, world, frame_interval) for video in videos])
