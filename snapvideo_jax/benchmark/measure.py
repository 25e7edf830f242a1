"""Runs the programs of configurations on the devices at hand and times them, in turns.

Arguments lie on the devices before a clock starts, and it stops when the last result is there. All
configurations get the same videos, batch and devices.
"""

import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from snapvideo_jax import build
from snapvideo_jax.benchmark import machine, programs
from snapvideo_jax.benchmark.programs import Case, CompiledCase
from snapvideo_jax.benchmark.rows import Row
from snapvideo_jax.build import Config
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import chips

Say = Callable[[str], None]
Progress = Callable[[str], Callable[[int, int], None]]  # things -> (how many are done, of how many)


class Request(NamedTuple):
    """What to measure: every configuration in each mode, at each size, on each number of devices.

    configs: by name. batch_sizes: videos for each device, ascending. videos: (T, H, W) in pixels;
    None is each config's own.
    """

    configs: Mapping[str, Config]
    modes: Sequence[str]
    batch_sizes: Sequence[int]
    devices: Sequence[int]
    videos: Sequence[tuple[int, int, int] | None] = (None,)


class Timing(NamedTuple):
    """step_ms: of each round. memory: bytes that one device counted; None where it did not."""

    step_ms: tuple[float, ...]
    memory: int | None


class Part(NamedTuple):
    """What is measured together: videos of one size (None: each config's own), `batch` a device."""

    devices: int
    video: tuple[int, int, int] | None
    mode: str
    batch: int


def parts(request: Request) -> list[Part]:
    """Lists the parts in their order."""
    axes = request.devices, request.videos, request.modes, request.batch_sizes
    return [Part(*values) for values in itertools.product(*axes)]


def run(
    request: Request, devices: Sequence[jax.Device], rows_of: Callable[[list[Case]], list[Row]]
) -> Iterator[list[Row]]:
    """Yields the rows of each of the `parts`, as `rows_of` makes them from its cases.

    A configuration that runs out of memory gets a row that says so, and no larger batch in that
    mode, at that size, on that many devices.
    """
    full = set()
    for part in parts(request):
        names = [name for name in request.configs if (*part[:3], name) not in full]
        rows = rows_of([case(request.configs[name], name, part, devices) for name in names])
        full |= {(*part[:3], row.config) for row in rows if row.out_of_memory}
        yield rows


def check(request: Request, devices: Sequence[jax.Device]) -> None:
    """Raises ConfigError for devices that are not there, and sizes that do not fit or split."""
    for part in parts(request):
        if part.devices > len(devices):
            raise ConfigError(f"--devices={part.devices}: there are {len(devices)}")
        if part.devices < len(devices) and jax.process_count() > 1:
            raise ConfigError(
                f"--devices={part.devices}: many processes share all {len(devices)} or none"
            )
        for name, config in request.configs.items():
            try:
                one = case(config, name, part, devices)
                build.denoiser(one.config, 1, build.training_mesh(one.config, one.devices))
            except ConfigError as error:
                raise ConfigError(f"{name} on {part.devices} devices: {error}") from error


def case(config: Config, name: str, part: Part, devices: Sequence[jax.Device]) -> Case:
    """Returns the case of a config in a part, on the first of the devices."""
    config = config if part.video is None else build.with_video(config, part.video)
    config = build.with_batch_size(config, part.batch * part.devices)
    return Case(name, config, part.mode, devices[: part.devices])


def measure(
    cases: Sequence[Case],
    repeats: int,
    say: Say,
    progress: Progress,
    may_compile: Callable[[], bool] = lambda: True,
) -> list[Row]:
    """Times the cases in turns if all fit into memory, else one after the other.

    Returns a row for each that was compiled; it is not where `may_compile` says no before.
    """
    compiled = []
    for one in cases:
        if not may_compile():
            say(f"{programs.describe(one)}: no time is left to compile it")
            continue
        say(f"{programs.describe(one)}: compiling")
        compiled.append(programs.compile_case(one))
    usable = [one for one in compiled if one.executable is not None]
    if usable:
        say("making parameters and warming up")
    attempt_all = functools.partial(attempt, repeats=repeats, progress=progress)
    in_turns = attempt_all(usable) if len(usable) > 1 else None
    if in_turns is None:
        if len(usable) > 1:
            say("they do not fit into memory together: measuring one after the other")
        timings = {one.case.name: _attempt_alone(attempt_all, one) for one in usable}
    else:
        timings = {one.case.name: timing for one, timing in zip(usable, in_turns, strict=True)}
    rows = [row(one, timings.get(one.case.name), in_turns is not None) for one in compiled]
    for one, its_row in zip(compiled, rows, strict=True):
        if its_row.out_of_memory:
            say(f"{programs.describe(one.case)}: out of memory")
    return rows


def _attempt_alone(
    attempt_all: Callable[[list[CompiledCase]], list[Timing] | None], compiled: CompiledCase
) -> Timing | None:
    """Times one program by itself; returns None if not even that fits."""
    gc.collect()  # what failed before may still be held by its traceback, in a cycle
    timings = attempt_all([compiled])
    return timings[0] if timings else None


def attempt(
    compiled: Sequence[CompiledCase], repeats: int, progress: Progress
) -> list[Timing] | None:
    """Times the programs in turns, all of them held in memory; returns None if they do not fit."""
    if not fit(compiled):
        return None
    names = " and ".join(one.case.name for one in compiled)
    running, memory = [], []
    try:
        for one in compiled:
            running.append(Running(one))
            memory.append(running[-1].warm_up())
        report, count = progress(f"steps of {names}"), itertools.count(1)
        step_done = lambda: report(next(count), len(compiled) * repeats)
        step_ms = rounds(running, repeats, step_done)
    except jax.errors.JaxRuntimeError as error:
        if not chips.exhausted(error):
            raise
        return None
    return [Timing(ms, bytes_) for ms, bytes_ in zip(step_ms, memory, strict=True)]


def fit(compiled: Sequence[CompiledCase]) -> bool:
    """Returns whether programs fit into memory at once, as far as is known before they run."""
    free = machine.free_memory(compiled[0].case.devices[0])
    needed = sum(len(one.case.devices) * (one.memory or 0) for one in compiled)
    return free is None or needed <= free


def rounds(
    calls: Sequence[Callable[[], None]],
    repeats: int,
    step_done: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, ...]]:
    """Returns the milliseconds of each call in each of `repeats` rounds, which make all calls."""
    step_ms = [[] for _ in calls]
    for _ in range(repeats):
        for call, ms in zip(calls, step_ms, strict=True):
            start = clock()
            call()
            ms.append(1e3 * (clock() - start))
            step_done()
    return [tuple(ms) for ms in step_ms]


class Running:
    """A program with its arguments on the devices; a call is one step, to its end."""

    def __init__(self, compiled: CompiledCase):
        devices = compiled.case.devices
        self._device = next(d for d in devices if d.process_index == jax.process_index())
        self._in_use = _stat(self._device, "bytes_in_use")
        self._compiled = compiled
        self._arguments = programs.first_arguments(compiled)
        jax.block_until_ready(self._arguments)
        self._peak_before = _stat(self._device, "peak_bytes_in_use")

    def __call__(self) -> None:
        """Runs one step, and keeps the arguments of the next."""
        results = self._compiled.executable(*self._arguments)
        jax.block_until_ready(results)
        self._arguments = programs.next_arguments(self._compiled, self._arguments, results)

    def warm_up(self) -> int | None:
        """Runs the first step; returns the bytes that the program had on a device.

        A device knows only the highest peak since it was started, so None unless this is it.
        """
        self()
        peak, before = _stat(self._device, "peak_bytes_in_use"), self._peak_before
        if peak is None or before is None or self._in_use is None or peak <= before:
            return None
        return peak - self._in_use


def row(compiled: CompiledCase, timing: Timing | None, interleaved: bool) -> Row:
    """Returns the row of a case; `timing` is None where it ran out of memory."""
    case, program = compiled.case, compiled.program
    device = case.devices[0].device_kind
    counted = timing.memory if timing else None
    return Row(
        config=case.name,
        network=program.network,
        parameters=program.parameters,
        video=program.denoiser.network.video,
        mode=case.mode,
        kind="measured",
        device=device,
        devices=len(case.devices),
        mesh=dict(program.mesh.shape),
        dtype=program.dtype,
        attention=program.attention,
        batch=program.videos,
        step_ms=timing.step_ms if timing else (),
        interleaved=interleaved and timing is not None,
        model_flops=program.model_flops,
        hardware_flops=program.flops,
        peak_flops=machine.peak_flops(device, program.dtype),
        peak_memory_bytes=counted or compiled.memory,
        memory_source="device" if counted else "compiler" if compiled.memory else None,
        compile_seconds=compiled.seconds,
    )


def _stat(device: jax.Device, name: str) -> int | None:
    return (device.memory_stats() or {}).get(name)
