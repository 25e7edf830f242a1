"""A program through the compiler of its chips, whose report is cached for the next time.

JAX's own cache cannot give back a program for a TPU that is not there, and compiling takes minutes,
so its report, the compiled text and the memory it needs, goes to a file of its own, whose name is a
digest of the program, the chips and the compiler.
"""

import contextlib
import gzip
import hashlib
import json
import re
import time
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, StorageError
from snapvideo_jax.parallel import chips

# How a TPU's compiler refuses a program: before it has placed the arrays in memory, and after.
REFUSALS = (
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)",
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm",
)


class CompilerReport(NamedTuple):
    """What the compiler says of a program. Bytes are of one device.

    text: the compiled program; "" where it does not fit. total: all bytes that it needs. arguments,
    temporaries: parts of `total`, which are 0 where the compiler refuses and names the sum alone.
    seconds: that compiling took.
    """

    text: str
    fits: bool
    total: int
    arguments: int
    temporaries: int
    seconds: float


def compile_or_load(
    lowered: jax.stages.Lowered, mesh: Mesh, version: str, cache: Path | None
) -> CompilerReport:
    """Compiles for the devices of a mesh, or loads the report of the very same program.

    The report in the folder `cache` counts where devices, their order, options and version of the
    compiler are the same too. A file that cannot be read or written is ignored. Raises what the
    compiler raises for other reasons than memory.
    """
    place = lambda device: (device.device_kind, device.id, *getattr(device, "coords", ()))
    places = [place(device) for device in mesh.devices.flat]
    program = json.dumps([version, places, chips.options(mesh), lowered.as_text()])
    file = cache and cache / f"{hashlib.sha256(program.encode()).hexdigest()[:32]}.json.gz"
    report = file and _read(file)
    if report:
        return report
    report = _compile(lowered)
    if file:
        with contextlib.suppress(StorageError):
            storage.make_folder(file.parent)
            storage.write(file, gzip.compress(json.dumps(report).encode()))
    return report


def _read(file: Path) -> CompilerReport | None:
    try:
        return CompilerReport(*json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, TypeError):  # damaged, or of another day
        return None


def _compile(lowered: jax.stages.Lowered) -> CompilerReport:
    start = time.monotonic()
    try:
        program = compile_lowered(lowered)
    except jax.errors.JaxRuntimeError as error:
        if not chips.exhausted(error):
            raise
        return CompilerReport(
            text="",
            fits=False,
            total=read_refusal(str(error))[0],
            arguments=0,
            temporaries=0,
            seconds=time.monotonic() - start,
        )
    analysis: Any = program.memory_analysis()
    return CompilerReport(
        text=program.as_text() or "",
        fits=True,
        total=total_bytes(analysis),
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        seconds=time.monotonic() - start,
    )


def total_bytes(analysis: Any) -> int:
    """Sums all that a program holds on one device, from its `memory_analysis()`."""
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes  # the rest is donated
    working = analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes
    return analysis.argument_size_in_bytes + working + results


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles with the chips' own compiler, without a warning of JAX's cache.

    The cache takes a program for a TPU, but cannot load it without one, and warns each time that it
    tries.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        return lowered.compile()


def read_refusal(error: str) -> tuple[int, int]:
    """Reads (total, limit) bytes from a TPU compiler's refusal of a program that does not fit.

    The total holds the arguments, even where the refusal calls all of it temporaries. Raises
    ConfigError where it is about other memory than the device's own, such as a kernel's fast one.
    """
    sizes = next(filter(None, (re.search(form, error) for form in REFUSALS)), None)
    if sizes is None:
        raise ConfigError(
            f"the compiler refuses the program: {error[:300]}; try another mesh, model.remat, "
            "training.accumulate or batch"
        )
    units = {unit: 1024 ** (i + 1) for i, unit in enumerate("KMGT")}  # as the compiler has them
    total, total_unit, limit, limit_unit = sizes.groups()
    return int(float(total) * units[total_unit]), int(float(limit) * units[limit_unit])
