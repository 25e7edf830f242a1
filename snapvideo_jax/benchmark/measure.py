"""Runs the programs of configurations on the devices at hand and times them, in turns.

Arguments lie on the devices before a clock starts, and it stops when the last result is there. All
configurations get the same videos, batch and devices.
"""

import copy
import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from snapvideo_jax import build
from snapvideo_jax.benchmark import machine, programs
from snapvideo_jax.benchmark.programs import Case, Compiled
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import compiler

Say = Callable[[str], None]
Progress = Callable[[str], Callable[[int, int], None]]  # things -> (how many are done, of how many)


class Asked(NamedTuple):
    """What to measure: every configuration in each mode, at each size, on each number of devices.

    configs: by name. batch_sizes: videos for each device, ascending.
    """

    configs: Mapping[str, Config]
    modes: Sequence[str]
    batch_sizes: Sequence[int]
    devices: Sequence[int]


class Timed(NamedTuple):
    """step_ms: of each round. memory: bytes that one device counted; None where it did not."""

    step_ms: tuple[float, ...]
    memory: int | None


def parts(asked: Asked) -> list[tuple[int, str, int]]:
    """(devices, mode, videos for each device): what is measured together, in order."""
    return list(itertools.product(asked.devices, asked.modes, asked.batch_sizes))


def run(
    asked: Asked, devices: Sequence[jax.Device], rows_of: Callable[[list[Case]], list[Row]]
) -> Iterator[list[Row]]:
    """The rows of each of the `parts`, as `rows_of` its cases makes them.

    A configuration that runs out of memory gets a row that says so, and no larger batch in that
    mode on that many devices.
    """
    full = set()
    for number, mode, size in parts(asked):
        names = [name for name in asked.configs if (number, mode, name) not in full]
        rows = rows_of([case(asked, name, mode, size, devices[:number]) for name in names])
        full |= {(number, mode, row.config) for row in rows if row.out_of_memory}
        yield rows


def check(asked: Asked, devices: Sequence[jax.Device]) -> None:
    """ConfigError for devices that are not there, and for sizes that do not split over them."""
    there = len(devices)
    for number in asked.devices:
        if number > there:
            raise ConfigError(f"--devices={number}: there are {there}")
        if number < there and jax.process_count() > 1:
            raise ConfigError(f"--devices={number}: many processes share all {there} or none")
        for name, size in itertools.product(asked.configs, asked.batch_sizes):
            one = case(asked, name, programs.MODES[0], size, devices[:number])
            try:
                build.mesh(one.config, one.devices)
            except ConfigError as error:
                raise ConfigError(f"{name} on {number} devices: {error}") from error


def case(asked: Asked, name: str, mode: str, size: int, devices: Sequence[jax.Device]) -> Case:
    """`size` videos for each of the devices."""
    config = copy.deepcopy(asked.configs[name])
    config.training.batch_size = size * len(devices)
    return Case(name, config, mode, devices)


def measured(cases: Sequence[Case], repeats: int, say: Say, progress: Progress) -> list[Row]:
    """A row for each case; in turns if all fit into memory together, else one after the other."""
    made = []
    for one in cases:
        say(f"{programs.described(one)}: compiling")
        made.append(programs.compiled(one))
    usable = [one for one in made if one.program is not None]
    if usable:
        say("making parameters and warming up")
    go = functools.partial(attempt, repeats=repeats, progress=progress)
    together = go(usable) if len(usable) > 1 else None
    if together is None:
        if len(usable) > 1:
            say("they do not fit into memory together: measuring one after the other")
        timed = {one.case.name: alone(go, one) for one in usable}
    else:
        timed = {one.case.name: times for one, times in zip(usable, together, strict=True)}
    found = [row(one, timed.get(one.case.name), together is not None) for one in made]
    for one, its_row in zip(made, found, strict=True):
        if its_row.out_of_memory:
            say(f"{programs.described(one.case)}: out of memory")
    return found


def alone(go: Callable[[list[Compiled]], list[Timed] | None], made: Compiled) -> Timed | None:
    """One program by itself; None if not even that fits."""
    gc.collect()  # what failed before may still be held by its traceback, in a cycle
    times = go([made])
    return times[0] if times else None


def attempt(made: Sequence[Compiled], repeats: int, progress: Progress) -> list[Timed] | None:
    """Times the programs in turns, all of them held in memory; None if they do not fit."""
    if not fit(made):
        return None
    names = " and ".join(one.case.name for one in made)
    running, memory = [], []
    try:
        for one in made:
            running.append(Running(one))
            memory.append(running[-1].warm_up())
        tell, count = progress(f"steps of {names}"), itertools.count(1)
        step_done = lambda: tell(next(count), len(made) * repeats)
        taken = rounds(running, repeats, step_done)
    except jax.errors.JaxRuntimeError as error:
        if not compiler.exhausted(error):
            raise
        return None
    return [Timed(ms, bytes_) for ms, bytes_ in zip(taken, memory, strict=True)]


def fit(made: Sequence[Compiled]) -> bool:
    """Whether the programs fit into memory together, as far as can be said before they run."""
    free = machine.free_memory(made[0].case.devices[0])
    needed = sum(len(one.case.devices) * (one.memory or 0) for one in made)
    return free is None or needed <= free


def rounds(
    calls: Sequence[Callable[[], None]],
    repeats: int,
    step_done: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, ...]]:
    """Milliseconds of each call in each of `repeats` rounds; a round makes every call once."""
    taken = [[] for _ in calls]
    for _ in range(repeats):
        for call, ms in zip(calls, taken, strict=True):
            start = clock()
            call()
            ms.append(1e3 * (clock() - start))
            step_done()
    return [tuple(ms) for ms in taken]


class Running:
    """A program with its arguments on the devices; a call is one step, to its end."""

    def __init__(self, made: Compiled):
        self._device = next(d for d in made.case.devices if d.process_index == jax.process_index())
        self._held = _stat(self._device, "bytes_in_use")
        self._made = made
        self._arguments = made.work.start()
        jax.block_until_ready(self._arguments)
        self._before = _stat(self._device, "peak_bytes_in_use")

    def __call__(self) -> None:
        """One step, and the arguments of the next."""
        results = self._made.program(*self._arguments)
        jax.block_until_ready(results)
        self._arguments = self._made.work.carry(self._arguments, results)

    def warm_up(self) -> int | None:
        """The first step; bytes that the program had on a device.

        A device knows only the highest peak since it was started, so None unless this is it.
        """
        self()
        peak = _stat(self._device, "peak_bytes_in_use")
        if peak is None or self._before is None or self._held is None or peak <= self._before:
            return None
        return peak - self._held


def row(made: Compiled, timed: Timed | None, interleaved: bool) -> Row:
    """What was found of a case; `timed` is None where it ran out of memory."""
    case, config = made.case, made.case.config
    device = case.devices[0].device_kind
    model, hardware = programs.flops(case, made.work)
    counted = timed.memory if timed else None
    return Row(
        config=case.name,
        network=config.model.name,
        video=build.padded_video(config),
        mode=case.mode,
        kind="measured",
        device=device,
        devices=len(case.devices),
        mesh=made.work.mesh,
        dtype=config.model.dtype,
        batch=config.training.batch_size,
        step_ms=timed.step_ms if timed else (),
        interleaved=interleaved and timed is not None,
        model_flops=model,
        hardware_flops=hardware,
        peak_flops=machine.peak_flops(device, config.model.dtype),
        peak_memory_bytes=counted or made.memory,
        memory_source="device" if counted else "compiler" if made.memory else None,
        compile_seconds=made.seconds,
    )


def _stat(device: jax.Device, name: str) -> int | None:
    return (device.memory_stats() or {}).get(name)
