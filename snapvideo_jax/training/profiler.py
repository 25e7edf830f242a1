"""A trace of a few steps of training, for xprof: where their time goes, by the paper's names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from snapvideo_jax.errors import ConfigError


def parse(text: str) -> range:
    """Reads '10:13' as steps 10 to 13, both included; ConfigError for what is no FIRST:LAST."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"--profile={text} must be FIRST:LAST, two steps in order, as 10:13")
    return range(int(match[1]), int(match[2]) + 1)


def check(steps: range, start: int, end: int) -> None:
    """Raises ConfigError unless a run from step `start` to `end` will do all of `steps`, if any."""
    if steps and not (start < steps[0] and steps[-1] <= end):
        left = f"steps {start + 1} to {end}" if start < end else "no step"
        raise ConfigError(f"--profile={steps[0]}:{steps[-1]}: the run has {left} left")


class Trace:
    """Traces `steps` and nothing beside them into `folder`, however the run ends.

    The devices are awaited at both ends of the trace, and nowhere else.
    """

    def __init__(self, folder: Path, steps: range, log: Callable[[str], None]):
        self._folder, self._steps, self._log = folder, steps, log
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def before(self, step: int, state: Any) -> None:
        """Starts with the first step, when the devices have done what came before it."""
        if self._steps and step == self._steps[0]:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # each Python call would be slowed down and written
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """Ends with the last step, when the devices have done it."""
        if self._running and step == self._steps[-1]:
            jax.block_until_ready(state)
            self._stop()

    def __exit__(self, *error: object) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        self._log(f"trace for xprof in {self._folder}")
