"""Estimates for people to read, and as trees for JSON."""

import importlib.metadata
from collections import defaultdict
from typing import Any, NamedTuple

from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import predict, topology
from snapvideo_jax.planner.estimate import Estimate
from snapvideo_jax.units import (
    flops_text,
    number_text,
    percent_text,
    size_text,
    time_text,
)

NAMES = {"ema": "EMA"}
ALIKE = 0.005  # two times are alike that differ by less than this share


class Exchanges(NamedTuple):
    """All collectives of one kind along the same axes of the mesh. Bytes are of one chip."""

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    largest: int


def text(estimate: Estimate) -> str:
    """Returns the answer first (does it fit, how long does it take), then what it consists of."""
    lines = [
        fit(estimate),
        *headline(estimate),
        "",
        f"Memory of a chip: {size_text(estimate.total)} of {size_text(estimate.limit)}",
        *memory(estimate),
        *residuals(estimate),
        "",
        *speed(estimate),
        *exchanges(estimate),
        f"Predicted by the compiler (jax {_version('jax')}, {topology.version()}), which took "
        f"{estimate.compile_seconds:.0f} s; nothing was run.",
    ]
    return "\n".join(lines)


def fit(estimate: Estimate) -> str:
    """Says whether the program fits, where, and by how much."""
    spare = estimate.limit - estimate.total
    answer = f"fits, {size_text(spare)} to spare a chip"
    if not estimate.fits:
        answer = f"does not fit, {size_text(-spare)} too much for a chip"
    axes = axes_text(estimate.mesh)
    return f"{estimate.chips} x {estimate.chip}{', ' * bool(axes)}{axes}: {answer}"


def headline(estimate: Estimate) -> list[str]:
    """Says how long the program takes, if it can run, with both ends of the prediction."""
    seconds = estimate.seconds
    if seconds is None:
        return []
    unit = "a step" if estimate.calls == 1 else "a denoiser call"
    line = f"about {time_text(seconds.slow)} {unit}, predicted"
    if seconds.fast < (1 - ALIKE) * seconds.slow:
        line += (
            f"; between {time_text(seconds.fast)} (data sheet) and {time_text(seconds.slow)} "
            "(compiler's cycles)"
        )
    if estimate.calls == 1:
        return [line]
    videos = f"{estimate.videos} video{'s' * (estimate.videos > 1)}"
    sampling = time_text(estimate.calls * seconds.slow)
    return [line, f"about {sampling} to sample {videos}, in {estimate.calls} denoiser calls"]


def memory(estimate: Estimate) -> list[str]:
    """Returns a line for each part of a chip's memory, large first, with its share of the limit."""
    lines = []
    for name, size in sorted(estimate.memory.items(), key=lambda part: -part[1]):
        if size:
            share = size / estimate.limit
            percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
            bar = "#" * round(40 * share)
            line = f"  {NAMES.get(name, name):<14}{size_text(size):>9} {percent:>7}  {bar}"
            lines.append(line.rstrip())
    return lines


def residuals(estimate: Estimate) -> list[str]:
    """Returns what fills most of a chip that is too small for a training step."""
    if not estimate.residuals:
        return []
    lines = [f"  {size_text(each.size):>9}  {each.name}" for each in estimate.residuals[:8]]
    total = size_text(sum(each.size for each in estimate.residuals))
    return ["", f"Activations held for the backward pass: {total} a chip, by the trace", *lines]


def speed(estimate: Estimate) -> list[str]:
    """Returns what both ends of the predicted time consist of, and what follows from them."""
    seconds = estimate.seconds
    if seconds is None:
        return []
    overlap = "exchanges beside compute and kernels, at no cost"
    if seconds.overlapped > seconds.compute + seconds.kernels:
        overlap = "exchanges, which outlast the compute and kernels beside them"
    parts = (
        ("compute", seconds.compute, "by the compiler's count of cycles"),
        ("kernels", seconds.kernels, "of attention, by our count of their operations"),
        ("waiting", seconds.waiting, "for exchanges that stop the program"),
        ("overlapped", seconds.overlapped, overlap),
    )
    products = estimate.flops / estimate.chips / chips.tpu(estimate.chip).peak
    slow, fast = (percent_text(estimate.mfu_in(end)) for end in (seconds.slow, seconds.fast))
    rate = estimate.videos_per_second or 0.0
    each_chip = f", {number_text(rate / estimate.chips)} a chip" if estimate.chips > 1 else ""
    extra = estimate.flops / estimate.model_flops - 1
    again = f", {percent_text(extra)} more computed again" if extra > 0.001 else ""
    return [
        f"Time at the slow end: {time_text(seconds.slow)}, one thing after the other",
        *(f"  {name:<14}{time_text(part):>9}  {how}" for name, part, how in parts if part),
        f"Time at the fast end: {time_text(seconds.fast)}, by the data sheet: products, memory or",
        f"  exchanges at full rate, whichever takes longest (products alone {time_text(products)})",
        "",
        f"Work of all chips: {flops_text(estimate.model_flops)} of the model{again}",
        f"MFU: {slow} at the slow end, {fast} at the fast end",
        f"Videos a second: {number_text(rate)} at the slow end{each_chip}",
        "",
    ]


def exchanges(estimate: Estimate) -> list[str]:
    """Returns a line for each kind of collective and mesh axes, the costly first."""
    lines = [
        f"  {each.kind:<19}{' x '.join(each.axes):<22}{each.count:>7} x, "
        f"{size_text(each.bytes):>9} a chip, the largest {size_text(each.largest)}"
        for each in by_kind(estimate)
    ]
    return ["Exchanges between chips:", *lines, ""] if lines else []


def by_kind(estimate: Estimate) -> list[Exchanges]:
    """Sums the collectives by kind and axes, the costly first."""
    groups = defaultdict(list)
    for collective in estimate.collectives:
        axes = predict.axes(collective.devices, estimate.mesh)
        groups[collective.kind, axes].append(collective)
    sums = [
        Exchanges(
            kind=kind,
            axes=axes,
            count=sum(each.count for each in some),
            bytes=sum(each.count * each.bytes for each in some),
            largest=max(each.bytes for each in some),
        )
        for (kind, axes), some in groups.items()
    ]
    return sorted(sums, key=lambda each: -each.bytes)


def tree(estimate: Estimate) -> dict[str, Any]:
    """Returns an estimate for JSON; all of it is predicted."""
    seconds = estimate.seconds
    return {
        "kind": "predicted",
        "fits": estimate.fits,
        "chips": estimate.chips,
        "chip": estimate.chip,
        "mesh": estimate.mesh,
        "parameters": estimate.parameters,
        "hbm_bytes_per_chip": {"limit": estimate.limit, "total": estimate.total} | estimate.memory,
        "model_flops_per_step": estimate.model_flops,
        "hardware_flops_per_step": estimate.flops,
        "collectives": [
            {
                "kind": each.kind,
                "axes": each.axes,
                "count": each.count,
                "bytes": each.bytes,
                "largest_operand_bytes": each.largest,
            }
            for each in by_kind(estimate)
        ],
        "predicted_step_seconds": seconds and seconds.slow,
        "predicted_step_seconds_range": seconds and [seconds.fast, seconds.slow],
        "predicted_step_seconds_parts": seconds and seconds._asdict(),
        "predicted_mfu": estimate.mfu,
        "predicted_videos_per_second": estimate.videos_per_second,
        "calls_per_video": estimate.calls,
        "compile_seconds": round(estimate.compile_seconds, 1),
        "versions": {"jax": _version("jax"), "compiler": topology.version()},
    }


def compare(comparison: Any) -> str:
    """Returns a prediction.Comparison in two lines."""
    rates, rounds = comparison.rates, comparison.rounds
    return (
        f"measured {time_text(comparison.measured)} a call (median of {len(rounds)}: "
        f"{', '.join(map(time_text, rounds))}), predicted at full rate "
        f"{time_text(comparison.predicted)}: {comparison.error:+.0%}\n"
        f"rates ({rates.source}): {flops_text(rates.multiply)}/s, {size_text(rates.move)}/s"
    )


def axes_text(mesh: dict[str, int]) -> str:
    """Writes the axes that split anything: "fsdp 8 x group 2"."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1)


def _version(package: str) -> str:
    return importlib.metadata.version(package)
