"""One row for each program that is timed, and what follows from it by arithmetic."""

import dataclasses
import statistics
from typing import Any

GIGA, TERA = 1e9, 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A program on a mesh, and how long its steps took.

    Attributes:
      config: name of the configuration, as "fit_500m" or "fit_3b9:fsdp".
      network: "fit", "unet" or "dit".
      parameters: of the network.
      video: (T, H, W) as the network sees it.
      mode: "train", a training step, or "infer", one call of the network.
      kind: "measured", or "predicted" without running.
      device: what one device is, as JAX names it.
      devices: number of devices, over which `mesh` (size of each axis) is laid.
      dtype: of matrix products.
      attention: the kernel that attends where it fits: "cudnn", "pallas", or "plain", none.
      batch: videos a step, of all devices.
      step_ms: milliseconds of each timed step, or of a predicted one at the slow end of its band;
        () where it ran out of memory.
      fast_ms: the fast end of a predicted step's band; None for measured ones.
      interleaved: whether timed in turns with the other configurations, so that whatever slows the
        machine down slows all of them.
      model_flops: of a step on all devices, as the algorithm needs them; None if not known.
      hardware_flops: likewise, with what is computed again to save memory.
      peak_flops: a second, of one device for `dtype`; None if not known.
      peak_memory_bytes: on one device; None if not known.
      memory_source: "device", which counted what was in use, or "compiler", which says what the
        program needs.
      compile_seconds: of tracing and compiling; few where JAX's cache had the program.
    """

    config: str
    network: str
    parameters: int
    video: tuple[int, ...]
    mode: str
    kind: str
    device: str
    devices: int
    mesh: dict[str, int]
    dtype: str
    attention: str
    batch: int
    step_ms: tuple[float, ...] = ()
    fast_ms: float | None = None
    interleaved: bool = False
    model_flops: int | None = None
    hardware_flops: int | None = None
    peak_flops: float | None = None
    peak_memory_bytes: int | None = None
    memory_source: str | None = None
    compile_seconds: float | None = None

    @property
    def out_of_memory(self) -> bool:
        """Whether there are no times for want of memory."""
        return not self.step_ms

    @property
    def ms_per_step(self) -> float | None:
        """Median of the timed steps."""
        return statistics.median(self.step_ms) if self.step_ms else None

    @property
    def least_ms(self) -> float:
        """Fastest of the timed steps; of a predicted one the fast end of its band."""
        return self.fast_ms or min(self.step_ms)

    @property
    def ms_per_video(self) -> float | None:
        """Time of one device for a video, as the paper's milliseconds per video and GPU."""
        return self.ms_per_step and self.ms_per_step * self.devices / self.batch


def tree(row: Row) -> dict[str, Any]:
    """Returns a row as report.json has it: fields, and what follows from them if it is known."""
    seconds = row.ms_per_step and row.ms_per_step / 1e3
    rate = lambda flops: flops / seconds if flops and seconds else None
    peak = row.peak_flops and row.peak_flops * row.devices
    share = lambda flops: _ratio(rate(flops), peak)
    model_rate = rate(row.model_flops)
    return dataclasses.asdict(row) | {
        "video": list(row.video),
        "step_ms": list(row.step_ms),
        "out_of_memory": row.out_of_memory,
        "ms_per_video": row.ms_per_video,
        "ms_per_step": row.ms_per_step,
        "ms_per_step_min": None if row.out_of_memory else row.least_ms,
        "ms_per_step_max": max(row.step_ms, default=None),
        "videos_per_second": row.batch / seconds if seconds else None,
        "tflops_per_second": model_rate and model_rate / TERA,
        "mfu": share(row.model_flops),
        "hardware_utilization": share(row.hardware_flops),
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part and whole else None
