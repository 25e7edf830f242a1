"""What is known of a program before it runs, for people and as a tree for JSON."""

import importlib.metadata
from collections import defaultdict
from typing import Any

from snapvideo_jax.parallel import chips, predict, topology
from snapvideo_jax.parallel.doctor_table import size_text
from snapvideo_jax.parallel.plan import Verdict

NAMES = {"ema": "EMA"}


def text(verdict: Verdict) -> str:
    """The verdict in a line, what fills a chip's memory, how long it takes, what chips send."""
    rest = verdict.limit - verdict.total
    answer = f"fits, {size_text(rest)} to spare"
    if not verdict.fits:
        answer = f"does not fit, {size_text(-rest)} too much"
    axes = " x ".join(f"{axis} {size}" for axis, size in verdict.mesh.items() if size > 1)
    lines = [
        f"{verdict.chips} x {verdict.chip}{', ' * bool(axes)}{axes}: {answer}",
        "",
        f"Memory of a chip: {size_text(verdict.total)} of {size_text(verdict.limit)}",
        *filled(verdict),
        "",
        *speed(verdict),
        *sent(verdict),
        f"Predicted by the compiler (jax {_version('jax')}, {topology.version()}), which took "
        f"{verdict.compile_seconds:.0f} s; nothing was run.",
    ]
    return "\n".join(lines)


def filled(verdict: Verdict) -> list[str]:
    """A line for each part of a chip's memory, large first, with its share of the whole."""
    parts = sorted(verdict.memory.items(), key=lambda part: -part[1])
    return [
        f"  {NAMES.get(name, name):<14}{size_text(size):>9} {size / verdict.limit:>7.1%}  "
        + "#" * round(40 * size / verdict.limit)
        for name, size in parts
        if size
    ]


def speed(verdict: Verdict) -> list[str]:
    """The predicted time as a band, with what it consists of, and what follows from it."""
    seconds, chip = verdict.seconds, chips.tpu(verdict.chip)
    if seconds is None:
        return []
    what = "a step"
    if verdict.calls > 1:
        what = f"an evaluation, of which a video takes {verdict.calls}"
    peak = verdict.chips * chip.peak
    model, done = (flops / peak for flops in (verdict.model_flops, verdict.flops))
    again = verdict.flops / verdict.model_flops - 1
    return [
        f"Time of {what}: {_ms(seconds.fast)} to {_ms(seconds.slow)}",
        f"  slow: cores {_ms(seconds.cores)} by the compiler's cycles, kernels "
        f"{_ms(seconds.kernels)} by our count, exchanges {_ms(seconds.waits)} waited for and "
        f"{_ms(seconds.beside)} beside",
        f"  fast: the data sheet's limit (products alone {_ms(done)})",
        f"  MFU {model / seconds.slow:.0%} to {model / seconds.fast:.0%}, "
        f"{verdict.videos_per_second or 0:.3g} videos/s at the slow end "
        f"({(verdict.videos_per_second or 0) / verdict.chips:.3g} a chip)",
        f"  {verdict.model_flops / 1e12:,.1f} TFLOP of the model"
        + (f", {again:.0%} more computed again" if again > 0.001 else ""),
        "",
    ]


def sent(verdict: Verdict) -> list[str]:
    """A line for each kind of collective and mesh axes: how many, bytes of a chip, the largest."""
    lines = [
        f"  {kind:<19}{' x '.join(axes):<22}{count:>7} x, {size_text(size):>9} a chip, the largest "
        f"{size_text(largest)}"
        for kind, axes, count, size, largest in by_kind(verdict)
    ]
    return ["Exchanges:", *lines, ""] if lines else []


def by_kind(verdict: Verdict) -> list[tuple[str, tuple[str, ...], int, int, int]]:
    """(kind, axes, how many, bytes a chip in all, bytes of the largest), the costly first."""
    kinds = defaultdict(list)
    for collective in verdict.collectives:
        kinds[collective.kind, predict.axes(collective.devices, verdict.mesh)].append(collective)
    rows = [
        (kind, axes, sum(c.count for c in some), sum(c.count * c.bytes for c in some),
         max(c.bytes for c in some))
        for (kind, axes), some in kinds.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row[3])


def tree(verdict: Verdict) -> dict[str, Any]:
    """For JSON; all of it is predicted."""
    seconds, mfu = verdict.seconds, verdict.mfu
    return {
        "kind": "predicted",
        "fits": verdict.fits,
        "chips": verdict.chips,
        "chip": verdict.chip,
        "mesh": verdict.mesh,
        "parameters": verdict.parameters,
        "hbm_bytes_per_chip": {"limit": verdict.limit, "total": verdict.total} | verdict.memory,
        "model_flops_per_step": verdict.model_flops,
        "hardware_flops_per_step": verdict.flops,
        "collectives": [
            dict(kind=kind, axes=axes, count=count, bytes=size, largest_operand_bytes=largest)
            for kind, axes, count, size, largest in by_kind(verdict)
        ],
        "predicted_step_seconds": seconds and seconds.slow,
        "predicted_step_seconds_range": seconds and [seconds.fast, seconds.slow],
        "predicted_step_seconds_parts": seconds and seconds._asdict(),
        "predicted_mfu": mfu,
        "predicted_videos_per_second": verdict.videos_per_second,
        "calls_per_video": verdict.calls,
        "compile_seconds": round(verdict.compile_seconds, 1),
        "versions": {"jax": _version("jax"), "compiler": topology.version()},
    }


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.{1 if seconds < 1 else 0}f} ms"


def _version(package: str) -> str:
    return importlib.metadata.version(package)
