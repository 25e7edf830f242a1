"""Batches for one host, made ahead of time by threads of tf.data: images, videos and their text.

Image g and video g are pure functions of (seed, g), and each step takes the next few of both. So
the integer step is the whole position in the data and nothing about the pipeline is saved. An epoch
shows every file once, and any number of hosts makes the same global batches.
"""

import atexit
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from snapvideo_jax.data import order

Batch = dict[str, np.ndarray]
# (g, whether it is an image) -> (video uint8 [T, H, W, 3], caption, frame_interval seconds, (H, W))
Example = Callable[[int, bool], tuple[np.ndarray, str, float, tuple[int, int]]]
# captions -> their part of a batch: text_ids or text (states), and text_mask
Encode = Callable[[Sequence[str]], Batch]


@dataclasses.dataclass(frozen=True)
class FeedSpec:
    """What a host needs to make its rows of every global batch.

    Rows 0 .. images - 1 of each global batch are images (paper 3.3), the others videos. A host
    makes `rows` (in rising order) and cuts each video to `box`, the frames, rows and columns of
    pixels that its devices hold. workers: threads; prefetch: batches.
    """

    example: Example
    encode: Encode
    box: tuple[slice, slice, slice]
    batch_size: int
    images: int
    rows: Sequence[int]
    workers: int
    prefetch: int


def load(spec: FeedSpec, position: int) -> tuple[np.ndarray, bytes, np.float32, np.ndarray]:
    """Returns the host's example at `position`, counted over its own rows from step 0."""
    step, nth = divmod(position, len(spec.rows))
    g, is_image = order.sample_of(step, spec.rows[nth], spec.batch_size, spec.images)
    video, caption, interval, size = spec.example(g, is_image)
    return video[spec.box], caption.encode(), np.float32(interval), np.asarray(size, np.int32)


class Feed(Iterator[Batch]):
    """The host's batches from step `start` to `stop`, made ahead by threads of tf.data.

    Close it; the interpreter does so at exit, because a live tf.data iterator over Python functions
    would hang a process that ends with an exception.
    """

    def __init__(self, spec: FeedSpec, start: int, stop: int):
        self._spec = spec
        self._iterator = iter(_dataset(spec, start, stop))
        atexit.register(_close, weakref.ref(self))

    def __next__(self) -> Batch:
        video, captions, interval, size = (x.numpy() for x in next(self._iterator))
        text = self._spec.encode([c.decode() for c in captions])
        return {"video": video, "frame_interval": interval, "source_size": size} | text

    def close(self) -> None:
        """Stops the threads; safe to call twice."""
        self._iterator = iter(())


def _close(reference: weakref.ref[Feed]) -> None:
    feed = reference()
    if feed is not None:
        feed.close()


def _dataset(spec: FeedSpec, start: int, stop: int):
    import tensorflow as tf

    # The devices belong to JAX; tensorflow only moves data here.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    kinds = (tf.uint8, tf.string, tf.float32, tf.int32)
    shapes = ((*(span.stop - span.start for span in spec.box), 3), (), (), (2,))

    def example(position):
        parts = tf.numpy_function(lambda p: load(spec, int(p)), [position], kinds, stateful=False)
        return tuple(tf.ensure_shape(x, s) for x, s in zip(parts, shapes, strict=True))

    n = len(spec.rows)
    data = tf.data.Dataset.range(start * n, stop * n)
    data = data.map(example, num_parallel_calls=spec.workers, deterministic=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = spec.workers
    options.autotune.enabled = False
    return data.batch(n, drop_remainder=True).prefetch(spec.prefetch).with_options(options)
