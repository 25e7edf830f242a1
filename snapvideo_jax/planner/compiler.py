"""A program through the compiler of its chips, and what the compiler said, kept for the next time.

JAX's own cache cannot give back a program for a TPU that is not there, and compiling takes minutes,
so the compiled text and the memory it needs are kept in files of their own, named by a digest of
the program, the chips and the compiler.
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


class Outcome(NamedTuple):
    """What the compiler said. Bytes are of one device.

    text: the compiled program; "" where it does not fit. needed: in all, as far as is known.
    arguments, temporaries: of that; temporaries are 0 where only the sum is known.
    """

    text: str
    fits: bool
    needed: int
    arguments: int
    temporaries: int
    seconds: float


def outcome(lowered: jax.stages.Lowered, mesh: Mesh, version: str, kept: Path | None) -> Outcome:
    """Compiles for the devices of a mesh, or reads what was `kept` in that folder of the very same
    program for the same devices, order, options and version of the compiler.

    A file that cannot be read or written is as none. Raises what the compiler raises for other
    reasons than memory.
    """
    place = lambda device: (device.device_kind, device.id, *getattr(device, "coords", ()))
    where = [place(device) for device in mesh.devices.flat]
    program = json.dumps([version, where, chips.options(mesh), lowered.as_text()])
    file = kept and kept / f"{hashlib.sha256(program.encode()).hexdigest()[:32]}.json.gz"
    made = file and _read(file)
    if made:
        return made
    made = _compile(lowered)
    if file:
        with contextlib.suppress(StorageError):
            storage.make_folder(file.parent)
            storage.write(file, gzip.compress(json.dumps(made).encode()))
    return made


def _read(file: Path) -> Outcome | None:
    try:
        return Outcome(*json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, zlib.error, ValueError, TypeError):  # damaged, or of another day
        return None


def _compile(lowered: jax.stages.Lowered) -> Outcome:
    start = time.monotonic()
    try:
        made = compiled(lowered)
    except jax.errors.JaxRuntimeError as error:
        if not exhausted(error):
            raise
        return Outcome("", False, exceeded(str(error))[0], 0, 0, time.monotonic() - start)
    needs: Any = made.memory_analysis()
    sizes = needs.argument_size_in_bytes, needs.temp_size_in_bytes
    return Outcome(made.as_text() or "", True, needed(needs), *sizes, time.monotonic() - start)


def needed(needs: Any) -> int:
    """Bytes of one device in all, from a program's `memory_analysis()`."""
    new = needs.output_size_in_bytes - needs.alias_size_in_bytes  # the rest is given away
    made = needs.temp_size_in_bytes + needs.generated_code_size_in_bytes
    return needs.argument_size_in_bytes + made + new


def exhausted(error: BaseException) -> bool:
    """Whether a device's memory did not hold a program."""
    return "RESOURCE_EXHAUSTED" in str(error)


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program, by the chips' own compiler. JAX's cache takes one for a TPU, but cannot give it
    back without a TPU, and warns each time that it tries.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        return lowered.compile()


def exceeded(error: str) -> tuple[int, int]:
    """(needed, there are) bytes, from a TPU compiler's refusal of a program that does not fit.

    Arguments are in it, even where the refusal calls all of it temporaries. ConfigError for one
    that is about other memory than the device's own, such as the fast memory of a kernel.
    """
    sizes = next(filter(None, (re.search(form, error) for form in REFUSALS)), None)
    if sizes is None:
        raise ConfigError(
            f"the compiler refuses the program: {error[:300]}; try another mesh, model.remat, "
            "training.accumulate or batch"
        )
    units = {unit: 1024 ** (i + 1) for i, unit in enumerate("KMGT")}
    needed, unit, there, limit_unit = sizes.groups()
    return int(float(needed) * units[unit]), int(float(there) * units[limit_unit])
