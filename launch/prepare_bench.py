"""Measures how many clips one core draws from a data set, and how many cores a run needs.

  python -m launch.prepare bench --config=configs/fit_500m.py --config.data.path=DIR \\
      --step_seconds=0.5 --hosts=4

draws --clips videos, and as many stills, in one thread, in the order of training. Times are those
of the processor, which other work on the machine changes less; time on the clock, with waiting for
files, stands beside them. launch.benchmark and launch.plan say what a step takes.

Exit codes: 0 done, 2 bad flags or config, 3 bad data.
"""

import math
import time
from collections.abc import Callable

from absl import flags

from launch import data_config, entry, screen
from snapvideo_jax import build
from snapvideo_jax.data import order
from snapvideo_jax.units import number_text, time_text

entry.define_config()
CLIPS = flags.DEFINE_integer("clips", 50, "Videos to draw, and stills.", lower_bound=1)
STEP = flags.DEFINE_float("step_seconds", None, "Time of a step, for the cores it needs.")
HOSTS = flags.DEFINE_integer("hosts", 1, "Hosts that share each batch.", lower_bound=1)


def run() -> None:
    """Draws from the data that --config names, and says how long that takes."""
    config = data_config.checked()
    if STEP.value is None:
        entry.refuse_unread("--step_seconds", HOSTS)
    source = build.source(config, screen.replacements())
    batch_size = config.training.batch_size
    images = order.image_rows(batch_size, config.data.image_fraction)
    seconds = 0.0  # of one core, for a batch
    for kind, rows in (("videos", batch_size - images), ("stills", images)):
        if rows:
            cpu, clock = measure(lambda g, k=kind: source.draw(g, k == "stills"), CLIPS.value)
            seconds += cpu * rows
            screen.say(
                f"{kind}: {number_text(1 / cpu)} a second and core, {time_text(cpu)} each "
                f"({time_text(clock)} on the clock)"
            )
    screen.say(
        f"a batch of {batch_size}, {images} of them stills: {time_text(seconds)} of one core"
    )
    if STEP.value:
        cores = math.ceil(seconds / STEP.value / HOSTS.value)
        screen.say(
            f"steps of {time_text(STEP.value)} on {HOSTS.value} host(s): {cores} core(s) on each "
            f"(--config.data.workers={cores})"
        )


def measure(draw: Callable[[int], object], count: int) -> tuple[float, float]:
    """Returns the seconds of the processor and of the clock that each of `count` draws takes."""
    draw(count)  # imports and opens what all need
    cpu, clock = time.process_time(), time.perf_counter()
    for g in range(count):
        draw(g)
    return (time.process_time() - cpu) / count, (time.perf_counter() - clock) / count


if __name__ == "__main__":
    entry.run(run)
