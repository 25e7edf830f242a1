"""Batches for one host: which examples, made in parallel by tf.data, mixed, tokenized, ahead.

Image g and video g are pure functions of (seed, g), and step s holds the next few of each, so the
position in the data is the integer step: nothing about the pipeline is saved, an epoch shows every
file once, and any number of hosts yields the same global batches.
"""

import atexit
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Batch = dict[str, np.ndarray]
# (g, whether it is an image) -> (video uint8 [T, H, W, 3], caption, frame_interval seconds, (H, W))
Example = Callable[[int, bool], tuple[np.ndarray, str, float, tuple[int, int]]]
# captions -> what a batch holds of them: text_ids or text (states), and text_mask
Encode = Callable[[Sequence[str]], Batch]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a host needs to make its rows of every global batch.

    Rows 0 .. images - 1 of each global batch are images (paper 3.3), the others videos. A host
    makes `rows`, rising, and keeps of each video the `box` of frames, rows and columns of pixels
    that its devices hold. workers: threads; prefetch: batches.
    """

    example: Example
    encode: Encode
    box: tuple[slice, slice, slice]
    batch_size: int
    images: int
    rows: Sequence[int]
    workers: int
    prefetch: int


def load(plan: Plan, position: int) -> tuple[np.ndarray, bytes, np.float32, np.ndarray]:
    """The host's example at `position`, counted over its own rows from step 0."""
    step, nth = divmod(position, len(plan.rows))
    row = plan.rows[nth]
    if row < plan.images:
        example = plan.example(step * plan.images + row, True)
    else:
        videos = plan.batch_size - plan.images
        example = plan.example(step * videos + row - plan.images, False)
    video, caption, interval, size = example
    return video[plan.box], caption.encode(), np.float32(interval), np.asarray(size, np.int32)


class Feed(Iterator[Batch]):
    """The host's batches from step `start` to `stop`, made ahead by threads of tf.data.

    Close it, or let the interpreter do so at exit: a live tf.data iterator over Python functions
    hangs a process that ends with an exception.
    """

    def __init__(self, plan: Plan, start: int, stop: int):
        self._plan = plan
        self._iterator = iter(_dataset(plan, start, stop))
        atexit.register(_close, weakref.ref(self))

    def __next__(self) -> Batch:
        video, captions, interval, size = (x.numpy() for x in next(self._iterator))
        text = self._plan.encode([c.decode() for c in captions])
        return {"video": video, "frame_interval": interval, "source_size": size} | text

    def close(self) -> None:
        """Stops the threads; safe to call twice."""
        self._iterator = iter(())


def _close(feed: weakref.ref[Feed]) -> None:
    alive = feed()
    if alive is not None:
        alive.close()


def _dataset(plan: Plan, start: int, stop: int):
    import tensorflow as tf

    # Devices belong to JAX: tensorflow only moves data here.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    kinds = (tf.uint8, tf.string, tf.float32, tf.int32)
    shapes = ((*(along.stop - along.start for along in plan.box), 3), (), (), (2,))

    def make(position):
        parts = tf.numpy_function(lambda p: load(plan, int(p)), [position], kinds, stateful=False)
        return tuple(tf.ensure_shape(x, s) for x, s in zip(parts, shapes, strict=True))

    n = len(plan.rows)
    data = tf.data.Dataset.range(start * n, stop * n)
    data = data.map(make, num_parallel_calls=plan.workers, deterministic=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = plan.workers
    options.autotune.enabled = False
    return data.batch(n, drop_remainder=True).prefetch(plan.prefetch).with_options(options)
