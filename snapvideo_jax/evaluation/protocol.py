"""The protocol "shapes": which prompts are sampled, and how the oracle scores their videos."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from snapvideo_jax.data import shapes
from snapvideo_jax.data.world import World, compositions
from snapvideo_jax.evaluation import oracle

# (prompts, seeds) -> videos
Generate = Callable[[Sequence[str], Sequence[int]], UInt8[np.ndarray, "N T H W 3"]]


class Result(NamedTuple):
    """The report, as JSON has it, and the videos of prompts seen in training, right or not."""

    report: dict[str, Any]
    prompts: list[str]
    videos: UInt8[np.ndarray, "N T H W 3"]
    right: list[bool]


def prompts(world: World, num: int, held_out: bool, seed: int) -> list[str]:
    """Returns `num` captions of compositions that training shows or, held out, never shows.

    The compositions come in a random order, again and again, so all of them come equally often.
    """
    captions = [shapes.caption(c) for c in compositions(world, held_out)]
    shuffled = np.random.default_rng(seed).permutation(len(captions))
    return [captions[shuffled[i % len(captions)]] for i in range(num)]


def shapes_protocol(
    world: World, frame_interval: float, generate: Generate, num: int, seed: int
) -> Result:
    """Samples `num` prompts seen in training and as many of held-out compositions; scores both."""
    intervals = [frame_interval] * num
    seen, unseen = (prompts(world, num, held_out=held_out, seed=seed) for held_out in (False, True))
    videos = generate([*seen, *unseen], range(seed, seed + 2 * num))
    score = functools.partial(oracle.score, world=world)
    scores = score(list(videos[:num]), seen, frame_intervals=intervals)
    scores["held_out"] = score(list(videos[num:]), unseen, frame_intervals=intervals)
    report = {"protocol": "shapes", "seed": seed, "oracle": scores, "chance": oracle.chance(world)}
    right = [
        score([video], [prompt], frame_intervals=[frame_interval])["all"] == 1
        for video, prompt in zip(videos[:num], seen, strict=True)
    ]
    return Result(report, prompts=seen, videos=videos[:num], right=right)
