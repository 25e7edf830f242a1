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
    """Operations a second that a device can do at most; None where that is not known."""
    chip = chips.of(device)
    return chip.peak if chip and dtype == "bfloat16" else None


def free_memory(device: jax.Device) -> int | None:
    """Bytes that a CPU has left, which would rather end the process than say that it has none.

    None for other devices, which say it, and where the system does not tell.
    """
    told = Path("/proc/meminfo")
    if device.platform != "cpu" or not told.exists():
        return None
    lines = dict(line.split(":") for line in told.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def facts(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Device, host and versions; `load`: programs that wanted a core in the last minute.

    devices: what was timed; or chips of a slice, of which nobody but their compiler was asked.
    """
    device = devices[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    here = device in jax.devices()
    told = {} if here else {"compiler": topology.version()}
    return {
        "device": device.device_kind,
        "versions": {"python": platform.python_version()} | versions | told,
        "platform": device.client.platform_version.splitlines()[0] if here else "none",
        "host": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
    }
