"""Measures how many clips one core draws from a data set, and how many cores a run needs.

  python -m launch.prepare bench --config=configs/fit_500m.py --config.data.path=DIR \\
      --step_seconds=0.5 --hosts=4

draws --clips videos, and as many stills, in one thread, in the order of training. Times are those
of the processor, which other work on the machine changes less; time on the clock, with waiting for
files, stands beside them. launch.benchmark and launch.plan say what a step takes.

Exit codes: 0 done, 2 bad flags or config, 3 bad data.
"""

import math
import resource
import time
from collections.abc import Callable

from launch import data_config, entry, number_flags, screen
from snapvideo_jax import build
from snapvideo_jax.data import order
from snapvideo_jax.data.decoders import Decoders
from snapvideo_jax.kinds import Real, Whole
from snapvideo_jax.units import number_text, time_text

entry.define_config()
CLIPS = number_flags.define("clips", 50, Whole(1, 1_000_000), "Videos to draw, and stills.")
STEP = number_flags.define(
    "step_seconds", None, Real(1e-6, 86_400.0), "Time of a step, for the cores it needs."
)
HOSTS = number_flags.define("hosts", 1, Whole(1, 65_536), "Hosts that share each batch.")


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
            draw = lambda g, is_image=kind == "stills": source.draw(g, is_image)
            cpu, clock = measure(draw, CLIPS.value, source.decoders)
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


def measure(
    draw: Callable[[int], object], count: int, decoders: Decoders | None
) -> tuple[float, float]:
    """Returns the seconds of the processor and of the clock that each of `count` draws takes.

    decoders: processes that read files. The system tells their time when they have ended, so what
    it takes to start one again, and to draw one, is taken off.
    """
    draw(count)  # imports and opens what all need
    if decoders is None:
        cpu, clock = _cpu_seconds(), time.perf_counter()
        for g in range(count):
            draw(g)
        return (_cpu_seconds() - cpu) / count, (time.perf_counter() - clock) / count
    decoders.close()
    cpu = _cpu_seconds()
    draw(count)
    decoders.close()
    of_one, cpu = _cpu_seconds() - cpu, _cpu_seconds()
    draw(count)
    clock = time.perf_counter()
    for g in range(count):
        draw(g)
    clock = time.perf_counter() - clock
    decoders.close()
    return max(1e-9, _cpu_seconds() - cpu - of_one) / count, clock / count


def _cpu_seconds() -> float:
    """Returns the time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    entry.run(run)
