"""The machine of a benchmark: its device, that one's peak, and the versions of what ran."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import topology

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def peak_flops(device: str, dtype: str) -> float | None:
    """Returns the operations a second that a device can do at most; None where not known."""
    chip = chips.of(device)
    return chip.peak if chip and dtype == "bfloat16" else None


def free_memory(device: jax.Device) -> int | None:
    """Returns the bytes that a CPU has left, whose system ends a process that takes more.

    Returns None for other devices, which refuse, and where the system does not say.
    """
    file = Path("/proc/meminfo")
    if device.platform != "cpu" or not file.exists():
        return None
    lines = dict(line.split(":") for line in file.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def describe(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Returns device, host and versions. `load`: programs that wanted a core in the last minute.

    devices: those that are timed, or chips of a slice that is only compiled for.
    """
    device = devices[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    here = device in jax.devices()
    compiler = {} if here else {"compiler": topology.version()}
    return {
        "device": device.device_kind,
        "versions": {"python": platform.python_version()} | versions | compiler,
        "platform": device.client.platform_version.splitlines()[0] if here else "none",
        "host": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
    }
