"""What a device can do at most, by its maker's data sheet, and the compiler options for it.

Sources: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x (peak, HBM, interconnect);
jax-ml.github.io/scaling-book/tpus (units of a core); NVIDIA's data sheets (dense, no sparsity).
Clocks of TPUs follow from the peak: matrix units x side^2 x 2 x clock.
"""

import os
import re
import sys
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from snapvideo_jax.errors import ConfigError


class Chip(NamedTuple):
    """The limits of one JAX device; 0 where the maker says nothing, and nothing is predicted.

    peak: bf16 FLOP/s. hbm: bytes/s. link: bytes/s, one way, to both neighbors along one axis of the
    torus. arrays x side^2: multipliers of its matrix units. vector: elementwise operations a cycle.
    vmem: KiB of fast memory that one fusion may take (a compiler option). axes: of the torus.
    """

    name: str
    peak: float
    hbm: float
    link: float = 0.0
    arrays: int = 0
    side: int = 128
    vector: int = 0
    vmem: int = 0
    axes: int = 1

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak / (2 * self.arrays * self.side**2) if self.arrays else 0.0


# Pattern of JAX's `device_kind` -> the chip. vector: 8 x 128 lanes of 4 units a core. vmem: of 16,
# 32 and 64 MiB the one with the fewest compiler's cycles for FIT 500M (docs/history); v6e's
# is what marin-community/marin uses (pull request 3053); 0 leaves the compiler's default.
CHIPS = (
    # name, peak, hbm, link, arrays, side, vector, vmem, axes
    ("TPU v6( lite|e)", Chip("v6e", 918e12, 1638e9, 180e9, 4, 256, 4096, 98304, 2)),
    ("TPU v5( lite|e)", Chip("v5e", 197e12, 819e9, 90e9, 4, 128, 4096, 32768, 2)),
    ("TPU v5p?", Chip("v5p", 459e12, 2765e9, 180e9, 8, 128, 8192, 32768, 3)),
    ("TPU v4", Chip("v4", 275e12, 1228e9, 90e9, 8, 128, 8192, axes=3)),
    # One of a chip's two cores: JAX counts it as a device.
    ("TPU7x", Chip("tpu7x", 1153.5e12, 3690e9, 180e9, 4, 256, 4096, axes=3)),
    ("NVIDIA H200", Chip("H200", 989.5e12, 4800e9)),
    ("NVIDIA H100 80GB HBM3", Chip("H100", 989.5e12, 3350e9)),
    ("NVIDIA H100 PCIe", Chip("H100 PCIe", 756e12, 2000e9)),
    ("NVIDIA A100-SXM4-80GB", Chip("A100", 312e12, 2039e9)),
    ("NVIDIA A100-SXM4-40GB", Chip("A100", 312e12, 1555e9)),
)


Options = dict[str, str | bool | int | float]  # of a compiler, as JAX takes them

# For several TPUs: lets more kinds of work overlap with exchanges. By default the upsampler on
# v5e-16 waits for half of the kernels that it gathers (docs/history).
EXCHANGES: Options = dict.fromkeys(
    (
        "xla_tpu_enable_async_collective_fusion_while_loops",
        "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions",
        "xla_tpu_enable_async_collective_merger",
    ),
    "true",
)


def options(mesh: Mesh) -> Options | None:
    """Returns the compiler options for the devices of a mesh; None where there are none."""
    chip = of(mesh.devices.flat[0].device_kind)
    if not chip or not chip.vmem:
        return None
    exchanges = EXCHANGES if mesh.size > 1 else {}
    return {"xla_tpu_scoped_vmem_limit_kib": str(chip.vmem)} | exchanges


def memory(device: jax.Device) -> int:
    """Returns the bytes that a device has, or sys.maxsize where it does not say.

    A CPU device has its share of the host's.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", sys.maxsize)


def exhausted(error: BaseException) -> bool:
    """Returns whether a program failed for want of a device's memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def of(kind: str) -> Chip | None:
    """Returns the chip of a `device_kind`; None for one that the table lacks, such as a CPU."""
    return next((chip for form, chip in CHIPS if re.fullmatch(form, kind)), None)


def tpu(kind: str) -> Chip:
    """Returns the chip of a TPU's `device_kind`; raises ConfigError where the table lacks it."""
    chip = of(kind)
    if chip is None or not chip.arrays:
        raise ConfigError(
            f"nothing is known of a {kind}; add it to snapvideo_jax/parallel/chips.py"
        )
    return chip
