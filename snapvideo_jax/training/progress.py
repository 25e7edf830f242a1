"""The lines that a run shows: how far it is, how fast, and how long it waits for data."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from snapvideo_jax.units import duration_text, number_text

WAITS = 0.1  # share of the time without a batch from which on it is worth a word
ADVICE = (
    "the devices wait for data: python -m launch.prepare bench says how many workers a step needs "
    "(--config.data.workers=N), and packed clips need fewer (docs/data.md)"
)


class Speed(NamedTuple):
    """flops: that one device has to do in a step. peak: FLOP/s that it can do; 0 if not known."""

    flops: float
    peak: float


class Progress:
    """One line every few seconds: step, loss, videos/s, time left, share of time without batch.

    waited: returns how long the loop has waited for batches so far, in seconds. drawn: returns how
    long samples and evaluations have taken, which count for no rate: the first of them compiles.
    speed: called after the first step, in a thread, because counting the work of a large model
    takes seconds.
    """

    def __init__(
        self,
        start: int,
        steps: int,
        batch_size: int,
        every_seconds: float,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        waited: Callable[[], float] = lambda: 0.0,
        drawn: Callable[[], float] = lambda: 0.0,
        speed: Callable[[], Speed | None] = lambda: None,
    ):
        self._waited, self._drawn, self._count = waited, drawn, speed
        self._steps, self._batch_size, self._every, self._log = (
            steps,
            batch_size,
            every_seconds,
            log,
        )
        self._clock, self._width = clock, len(str(steps))
        self._compiled = self._advised = False
        self._restart(start)

    def step(self, step: int, loss: float) -> dict[str, float]:
        """Counts a finished step; speaks when it is time, and then returns the rates, else {}.

        The first step compiles, so it is reported by itself and left out of the rates.
        """
        self._losses.append(loss)
        if not self._compiled:
            self._compiled = True
            background = ThreadPoolExecutor(1)
            self._speed = background.submit(self._count)
            background.shutdown(wait=False)
            self._log(
                f"first step after {duration_text(self._clock() - self._then)}: loss {loss:.4f}"
            )
            self._restart(step)
            return {}
        elapsed = self._clock() - self._then
        if elapsed < self._every and step < self._steps:
            return {}
        elapsed -= self._drawn() - self._drawn_then
        seconds_a_step = elapsed / max(step - self._step, 1)
        rates = {
            "videos_per_second": self._batch_size / max(seconds_a_step, 1e-9),
            "data_wait": (self._waited() - self._waited_then) / max(elapsed, 1e-9),
        }
        if speed := self._speed.result():
            rates["tflops_per_device"] = speed.flops / max(seconds_a_step, 1e-9) / 1e12
            if speed.peak:
                rates["mfu"] = rates["tflops_per_device"] * 1e12 / speed.peak
        self._log(
            f"step {step:{self._width}d}/{self._steps}  loss {np.mean(self._losses):.4f}  "
            f"{rates['videos_per_second']:.1f} videos/s  "
            f"ETA {duration_text((self._steps - step) * seconds_a_step)}  "
            f"waiting for data {100 * rates['data_wait']:.0f} %{_speed_text(rates)}"
        )
        if rates["data_wait"] > WAITS and not self._advised:
            self._advised = True
            self._log(ADVICE)
        self._restart(step)
        return rates

    def _restart(self, step: int) -> None:
        self._step, self._then, self._losses = step, self._clock(), []
        self._waited_then, self._drawn_then = self._waited(), self._drawn()


def _speed_text(rates: dict[str, float]) -> str:
    """Writes what is known of the devices' speed, with a space before it, or nothing."""
    text = ""
    if "tflops_per_device" in rates:
        text = f"  {number_text(rates['tflops_per_device'])} TFLOP/s a device"
    return f"{text}, MFU {100 * rates['mfu']:.1f} %" if "mfu" in rates else text
