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
BESIDE = Path(sys.prefix) / "libtpu"
INSTALL = f"pip install --no-deps --target={BESIDE} libtpu==0.0.52"

# Chips in a slice -> its shape, where a slice is booked by number. Of v4 and v5p a name counts
# cores, two a chip; of v5e and v6e chips.
FLAT = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
CUBE = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
}  # fmt: skip
FLAT_KINDS = ("v5e", "v6e")
SLICES = {"v5e": (FLAT, 1), "v6e": (FLAT, 1), "v4": (CUBE, 2), "v5p": (CUBE, 2)}


def shaped(name: str) -> str:
    """The compiler's name of a slice: "v5p-128" -> "v5p:4x4x4"; one that has a shape stays."""
    kind, colon, shape = name.partition(":")
    if colon and re.fullmatch("x".join([r"[1-9]\d*"] * (2 if kind in FLAT_KINDS else 3)), shape):
        if kind in (*SLICES, "tpu7x"):
            return name
    kind, _, number = name.partition("-")
    if kind in SLICES and number.isdigit():
        shapes, cores = SLICES[kind]
        if int(number) // cores in shapes and int(number) % cores == 0:
            return f"{kind}:{shapes[int(number) // cores]}"
        known = ", ".join(f"{kind}-{cores * chips}" for chips in shapes)
        raise ConfigError(f"there is no slice {name}; there are {known}")
    raise ConfigError(
        f"topology {name!r} is not known; give a slice's name or shape, as v5e-16, v5e:4x4, "
        "v5p-128, v5p:4x4x4, v6e-64, v4-32 or tpu7x:2x2x1"
    )


def devices(name: str) -> Sequence[jax.Device]:
    """The chips of a slice, to compile for; nothing can run on them.

    ConfigError, with what to do, where the name is unknown or libtpu is not installed.
    """
    wanted = shaped(name)
    fused = {"chip_config_name": "megacore"} if wanted.startswith("v4") else {}  # as JAX runs them
    with _looking_nowhere(), _silenced_stderr():
        try:
            return topologies.get_topology_desc(wanted, "tpu", **fused).devices
        except Exception as error:  # what libtpu says of a shape that does not exist
            reason = str(error).splitlines()[0]
            raise ConfigError(f"the TPU compiler refuses {wanted}: {reason}") from error


def memory(chip: jax.Device) -> int:
    """Bytes of a chip that a program may use, as the compiler says when one needs more."""
    one = NamedSharding(Mesh(np.array([chip]), ("chip",)), PartitionSpec())
    far_too_much = jax.ShapeDtypeStruct((2**12, 2**30), np.uint8, sharding=one)
    try:
        compiler.compiled(jax.jit(lambda x: x + 1, out_shardings=one).lower(far_too_much))
    except jax.errors.JaxRuntimeError as error:
        return compiler.exceeded(str(error))[1]
    raise AssertionError("a program of 4 TiB was compiled")


def version() -> str:
    """libtpu and its version, from beside the library where it says so."""
    beside = [str(library().parent.parent)]
    found = importlib.metadata.distributions(name="libtpu", path=beside)
    return next((f"libtpu {each.version}" for each in found), "libtpu")


def library() -> Path:
    """Where libtpu.so is; ConfigError with how to get it if it is nowhere."""
    if given := os.environ.get("TPU_LIBRARY_PATH"):
        return Path(given)
    installed = importlib.util.find_spec("libtpu")
    folder = Path(installed.origin).parent if installed and installed.origin else BESIDE / "libtpu"
    if not (folder / "libtpu.so").exists():
        raise ConfigError(f"compiling for a TPU needs its compiler, libtpu: {INSTALL}")
    return folder / "libtpu.so"


@contextlib.contextmanager
def _looking_nowhere() -> Iterator[None]:
    """With what keeps libtpu from searching the network for a TPU's own; the rest is as it was."""
    before, path = dict(os.environ), str(library())
    os.environ.update(TPU_LIBRARY_PATH=path, TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Without the lines in which libtpu says that this machine has no TPU."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
