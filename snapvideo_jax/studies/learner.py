"""A network in training without tensorflow, on one device, and the examples that it sees."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.data import pipeline, shapes
from snapvideo_jax.planner import cost

Batch = dict[str, np.ndarray]


class Learner:
    """One network in training, and how long its steps took."""

    def __init__(self, config: Config, vocabulary_size: int):
        self.config = config
        self.program = build.train_program(config, vocabulary_size, jax.devices()[:1])
        arguments = self.program.abstract_state, self.program.abstract_batch
        self._update = self.program.step.lower(*arguments).compile()
        self.state = self.program.init()
        self.step_ms: list[float] = []

    def step(self, batch: Batch) -> None:
        """Takes one step and waits for its end."""
        shardings = {name: part.sharding for name, part in self.program.abstract_batch.items()}
        batch_on_device = jax.block_until_ready(jax.device_put(batch, shardings))
        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self._update(self.state, batch_on_device))
        self.step_ms.append(1e3 * (time.perf_counter() - start))

    def size(self) -> dict[str, Any]:
        """Returns parameters, and GFLOP of one call, of the network without the text encoder."""
        denoiser, params = self.program.denoiser, self.state.ema
        cast, blank = jax.eval_shape(denoiser.cast_kernels, params), build.blank_batch(self.config)
        inputs = jax.eval_shape(lambda p: denoiser.inputs(p, blank), params)
        return {
            "parameters": cost.parameters(params["network"]),
            "gflop_per_video": cost.flops(denoiser.F, cast, *inputs) / 1e9,
        }


def training_batches(config: Config, text: build.Text, steps: int) -> Iterator[Batch]:
    """Yields the batches of the first `steps` steps of a training run of `config`."""
    source = build.source(config, lambda path, why: None)
    world, batch_size = build.world(config), config.training.batch_size
    box = slice(world.num_frames), slice(world.height), slice(world.width)
    spec = build.feed_spec(config, source, text, rows=range(batch_size), box=box)
    for step in range(steps):
        examples = [pipeline.load(spec, batch_size * step + i) for i in range(batch_size)]
        videos, captions, intervals, sizes = zip(*examples, strict=True)
        yield _batch(
            text,
            videos=videos,
            captions=[caption.decode() for caption in captions],
            intervals=intervals,
            sizes=sizes,
        )


def held_out(config: Config, text: build.Text, num: int) -> Batch:
    """Returns `num` videos of compositions that training never shows, with their captions."""
    world = build.world(config)
    places = range(shapes.TEST_START, shapes.TEST_START + num)
    scenes = [shapes.draw_scene(world, config.seed, g, image=False, held_out=True) for g in places]
    return _batch(
        text,
        videos=[shapes.render(world, scene) for scene in scenes],
        captions=[shapes.caption(scene) for scene in scenes],
        intervals=[1 / scene.frame_rate for scene in scenes],
        sizes=[(world.height, world.width)] * num,
    )


def _batch(
    text: build.Text,
    *,
    videos: Sequence[UInt8[np.ndarray, "T H W 3"]],
    captions: Sequence[str],
    intervals: Sequence[float | np.floating],
    sizes: Sequence[Any],
) -> Batch:
    return text.encode(captions) | {
        "video": np.stack(videos),
        "frame_interval": np.asarray(intervals, np.float32),
        "source_size": np.asarray(sizes, np.int32),
    }
