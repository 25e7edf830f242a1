"""Batches for one host, made ahead of time by threads of tf.data: images, videos and their text.

Whatever goes wrong in a thread is raised, as one line, where the batch is taken.

Image g and video g are pure functions of (seed, g), and each step takes the next few of both. So
the integer step is the whole position in the data and nothing about the pipeline is saved. An epoch
shows every file once, and any number of hosts makes the same global batches.
"""

import atexit
import contextlib
import dataclasses
import faulthandler
import queue
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from snapvideo_jax.data import order
from snapvideo_jax.data.decoders import Decoders
from snapvideo_jax.errors import Stalled, UserError, reason, unreadable

_PATIENCE = 5  # seconds for the threads to end

Batch = dict[str, np.ndarray]
# (g, whether it is an image) -> (video uint8 [T, H, W, 3], caption, frame_interval seconds, (H, W))
Example = Callable[[int, bool], tuple[np.ndarray, str, float, tuple[int, int]]]
Parts = tuple[np.ndarray, bytes, np.float32, np.ndarray]  # video, caption, interval, size
# captions -> their part of a batch: text_ids or text (states), and text_mask
Encode = Callable[[Sequence[str]], Batch]


@dataclasses.dataclass(frozen=True)
class FeedSpec:
    """What a host needs to make its rows of every global batch.

    Rows 0 .. images - 1 of each global batch are images (paper 3.3), the others videos. A host
    makes `rows` (in rising order) and cuts each video to `box`, the frames, rows and columns of
    pixels that its devices hold. workers: threads; prefetch: batches. stall_seconds: that a batch
    may be waited for. decoders: processes that read for the threads, if there are any.
    """

    example: Example
    encode: Encode
    box: tuple[slice, slice, slice]
    batch_size: int
    images: int
    rows: Sequence[int]
    workers: int
    prefetch: int
    stall_seconds: float = 300.0
    decoders: Decoders | None = None


def load(spec: FeedSpec, position: int) -> Parts:
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
        """Starts the threads; the first batch is that of step start + 1."""
        self._spec, self._step = spec, start
        self._closed = threading.Event()
        self._at_work: dict[int, str] = {}  # thread -> what it makes
        self._problems: dict[int, Exception] = {}  # position -> what was raised there
        self._batches: queue.Queue = queue.Queue(max(1, spec.prefetch))
        iterator = iter(_dataset(spec, self._load, start, stop))
        # It waits for tf.data, so that what takes the batches may give up waiting.
        self._thread = threading.Thread(
            target=self._fill, args=(iterator, range(start, stop)), name="feed", daemon=True
        )
        atexit.register(_close, weakref.ref(self))
        self._thread.start()

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          UserError: what a thread raised; where that was of another kind, a DataError, or a
            StorageError where a file is out of reach.
          Stalled: no batch came within `stall_seconds`.
        """
        self._step += 1
        try:
            batch = self._batches.get(timeout=self._spec.stall_seconds)
        except queue.Empty:
            raise self._stalled() from None
        if batch is None or isinstance(batch, Exception):
            self._batches.put(batch)  # nothing else comes
            raise batch or StopIteration
        return batch

    def close(self) -> None:
        """Stops the threads; safe to call twice."""
        self._closed.set()
        if self._spec.decoders is not None:
            self._spec.decoders.close()
        self._thread.join(_PATIENCE)

    def _stalled(self) -> Stalled:
        """Writes the stacks of all threads to standard error, and says what is waited for."""
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        busy = self._spec.decoders.busy() if self._spec.decoders is not None else []
        doing = "; ".join(busy) or "; ".join(self._at_work.values()) or "no worker is at work"
        return Stalled(
            f"the input stalled at step {self._step}: no batch within "
            f"data.stall_seconds={self._spec.stall_seconds:g}: {doing}"
        )

    def _fill(self, iterator: Iterator, steps: range) -> None:
        """Puts batches, and at last None or what went wrong, where `__next__` takes them."""
        rows, last = len(self._spec.rows), None
        try:
            for step in steps:
                parts = [x.numpy().reshape(rows, *x.shape[2:]) for x in next(iterator)]
                problems = (self._problems.get(p) for p in range(step * rows, (step + 1) * rows))
                if last := next(filter(None, problems), None):
                    break
                if not self._put(self._batch(parts)):
                    break
        except Exception as error:
            last = _as_user_error(error, "a batch cannot be made")
        self._put(last)

    def _put(self, batch: Batch | Exception | None) -> bool:
        """Hands a batch over; returns False where the feed was closed meanwhile."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._batches.put(batch, timeout=0.1)
                return True
        return False

    def _batch(self, parts: list[np.ndarray]) -> Batch:
        video, captions, interval, size = parts
        text = self._spec.encode([c.decode() for c in captions])
        return {"video": video, "frame_interval": interval, "source_size": size} | text

    def _load(self, position: int) -> Parts:
        """Returns an example, or an empty one where it cannot be made or none is wanted."""
        step, nth = divmod(position, len(self._spec.rows))
        name = f"row {self._spec.rows[nth]} of step {step + 1}"
        thread = threading.get_native_id()
        self._at_work[thread] = f"thread {thread} makes {name}"
        try:
            if not self._closed.is_set():
                return load(self._spec, position)
        except BaseException as error:
            self._problems[position] = _as_user_error(error, f"{name} cannot be made")
        finally:
            self._at_work.pop(thread, None)
        shape = *(span.stop - span.start for span in self._spec.box), 3
        return np.zeros(shape, np.uint8), b"", np.float32(0), np.zeros(2, np.int32)


def _as_user_error(error: BaseException, problem: str) -> UserError:
    """Returns an error of one line: `error` itself if it is such a one."""
    if isinstance(error, UserError):
        return error.with_traceback(None)
    *_, last = traceback.extract_tb(error.__traceback__)
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    what = reason(error) if isinstance(error, Exception) else ""
    line = f"{problem}: {type(error).__name__} at {place}: {what or 'no reason given'}"
    return unreadable(line, error)


def _close(reference: weakref.ref[Feed]) -> None:
    feed = reference()
    if feed is not None:
        feed.close()


def _dataset(spec: FeedSpec, load_position: Callable[[int], Parts], start: int, stop: int):
    import tensorflow as tf

    # The devices belong to JAX; tensorflow only moves data here.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    kinds = (tf.uint8, tf.string, tf.float32, tf.int32)
    shapes = ((*(span.stop - span.start for span in spec.box), 3), (), (), (2,))
    n = len(spec.rows)
    several = _rows_a_call(n, spec.workers)

    def load_several(first: np.integer) -> tuple[np.ndarray, ...]:
        videos, captions, intervals, sizes = zip(
            *(load_position(int(first) + k) for k in range(several)), strict=True
        )
        texts = np.array(captions, object)  # as bytes they would lose zeros at their ends
        return np.stack(videos), texts, np.stack(intervals), np.stack(sizes)

    def examples(first):
        parts = tf.numpy_function(load_several, [first], kinds, stateful=False)
        return tuple(tf.ensure_shape(x, (several, *s)) for x, s in zip(parts, shapes, strict=True))

    data = tf.data.Dataset.range(start * n, stop * n, several)
    data = data.map(examples, num_parallel_calls=spec.workers, deterministic=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = spec.workers
    options.autotune.enabled = False
    return data.batch(n // several, drop_remainder=True).with_options(options)


def _rows_a_call(rows: int, workers: int) -> int:
    """Returns how many rows of a batch a thread makes in one call of Python from tensorflow.

    Such a call takes as long as to draw a small example. All threads make parts of each batch.
    """
    return max(k for k in range(1, max(1, rows // workers) + 1) if rows % k == 0)
