"""TPU slices by name, as devices of the TPU compiler: no TPU is needed, but libtpu is."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import compiler

# Beside the environment's packages, not among them: there JAX would look for a TPU at each start.
FOLDER = Path(sys.prefix) / "libtpu"
INSTALL = f"pip install --no-deps --target={FOLDER} libtpu==0.0.52"

# Chips in a slice -> its shape, where a slice is booked by number.
FLAT = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
CUBE = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
}  # fmt: skip

# Name under which slices are booked -> the compiler's name of the chip, shapes by number of chips,
# and what the number in a name counts: chips, or cores of which a chip has two.
SLICES = {
    "v5e": ("v5e", FLAT, 1),
    "v5litepod": ("v5e", FLAT, 1),  # Google Cloud's own name of v5e
    "v6e": ("v6e", FLAT, 1),
    "v5p": ("v5p", CUBE, 2),
    "v4": ("v4", CUBE, 2),
}
AXES = {"v5e": 2, "v6e": 2, "v5p": 3, "v4": 3, "tpu7x": 3}  # of the torus, in the name of a shape
NAMES = (
    f"there are v5e-N (or v5litepod-N) and v6e-N of N chips, N in {', '.join(map(str, FLAT))}; "
    f"v5p-N and v4-N of N cores, two a chip, N in {', '.join(str(2 * chips) for chips in CUBE)}; "
    "and shapes, such as v5e:4x4, v5p:4x4x4 and tpu7x:2x2x1"
)


def compiler_name(name: str) -> str:
    """Returns the compiler's name of a slice: "v5p-128" -> "v5p:4x4x4", "v5p:4x4x4" as it is.

    Raises ConfigError, with the names that there are, for any other.
    """
    kind, _, shape = name.partition(":")
    if kind in AXES and re.fullmatch("x".join([r"[1-9]\d*"] * AXES[kind]), shape):
        return name
    kind, _, number = name.partition("-")
    if kind not in SLICES or not re.fullmatch(r"\d{1,9}", number):
        raise ConfigError(f"topology {name!r} is not known; {NAMES}")
    chip, shapes, cores = SLICES[kind]
    if int(number) % cores or int(number) // cores not in shapes:
        names = ", ".join(f"{kind}-{cores * num_chips}" for num_chips in shapes)
        raise ConfigError(f"there is no slice {name}; there are {names}")
    return f"{chip}:{shapes[int(number) // cores]}"


def devices(name: str) -> Sequence[jax.Device]:
    """Returns the chips of a slice, to compile for; nothing can run on them.

    Raises ConfigError, with what to do, where the name is unknown or libtpu is not installed.
    """
    slice_name = compiler_name(name)
    megacore = {"chip_config_name": "megacore"}  # as JAX runs a v4 chip
    options = megacore if slice_name.startswith("v4") else {}
    with _offline_libtpu(), _silent_stderr():
        try:
            return topologies.get_topology_desc(slice_name, "tpu", **options).devices
        except Exception as error:  # what libtpu says of a shape that does not exist
            reason = str(error).splitlines()[0]
            raise ConfigError(f"the TPU compiler refuses {slice_name}: {reason}") from error


def memory(chip: jax.Device) -> int:
    """Returns the bytes of a chip that a program may use, which the compiler says in a refusal."""
    one = NamedSharding(Mesh(np.array([chip]), ("chip",)), PartitionSpec())
    far_too_large = jax.ShapeDtypeStruct((2**12, 2**30), np.uint8, sharding=one)
    try:
        compiler.compile_lowered(jax.jit(lambda x: x + 1, out_shardings=one).lower(far_too_large))
    except jax.errors.JaxRuntimeError as error:
        return compiler.read_refusal(str(error))[1]
    raise AssertionError("a program of 4.4 TB was compiled")


def version() -> str:
    """Returns "libtpu" with its version, where the files beside the library say it."""
    folder = str(library().parent.parent)
    distributions = importlib.metadata.distributions(name="libtpu", path=[folder])
    return next((f"libtpu {each.version}" for each in distributions), "libtpu")


def library() -> Path:
    """Returns where libtpu.so is; raises ConfigError, with how to install it, if it is nowhere."""
    if path := os.environ.get("TPU_LIBRARY_PATH"):
        return Path(path)
    package = importlib.util.find_spec("libtpu")
    folder = Path(package.origin).parent if package and package.origin else FOLDER / "libtpu"
    if not (folder / "libtpu.so").exists():
        raise ConfigError(f"compiling for a TPU needs its compiler, libtpu: {INSTALL}")
    return folder / "libtpu.so"


@contextlib.contextmanager
def _offline_libtpu() -> Iterator[None]:
    """Sets what keeps libtpu from searching the network for a TPU, and puts the rest back."""
    before, path = dict(os.environ), str(library())
    os.environ.update(TPU_LIBRARY_PATH=path, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops the lines in which libtpu says that this machine has no TPU."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
