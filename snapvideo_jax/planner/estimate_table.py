"""What is known of a program before it runs, for people and as a tree for JSON."""

import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from snapvideo_jax.parallel import chips
from snapvideo_jax.planner import predict, topology
from snapvideo_jax.planner.doctor_table import size_text
from snapvideo_jax.planner.estimate import Verdict
from snapvideo_jax.planner.search import Candidate, is_plain

NAMES = {"ema": "EMA"}
Ranking = Sequence[tuple[Candidate, Verdict]]


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
        *stored(verdict),
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


def stored(verdict: Verdict) -> list[str]:
    """What fills most of a chip that is too small."""
    if not verdict.stored:
        return []
    lines = [f"  {size_text(each.size):>9}  {each.what}" for each in verdict.stored[:8]]
    whole = size_text(sum(each.size for each in verdict.stored))
    return ["", f"Kept for the backward pass: {whole} a chip, by the trace", *lines]


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


def flags(candidate: Candidate) -> list[str]:
    """As --config takes it."""
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in candidate.mesh.items()]
    how = [f"--config.model.{name}={getattr(candidate, name)}" for name in ("remat", "dtype")]
    return [*sizes, *how, f"--config.training.accumulate={candidate.accumulate}"]


def row(candidate: Candidate, verdict: Verdict) -> str:
    """One layout in a line."""
    named = " x ".join(f"{axis} {size}" for axis, size in candidate.mesh.items() if size > 1)
    how = f"  {named:<34} {candidate.dtype:<8} remat {candidate.remat:<5} "
    how += f"accumulate {candidate.accumulate:>3}: "
    if verdict.seconds is None:
        return how + f"does not fit, {size_text(verdict.total - verdict.limit)} too much"
    return (
        f"{how}{_ms(verdict.seconds.slow)} a step, MFU {verdict.mfu:.0%}, "
        f"{size_text(verdict.total)} a chip"
    )


def ranking(rows: Ranking) -> str:
    """The layouts, the fastest first, and what the best is worth."""
    fitting = [each for each in rows if each[1].seconds is not None]
    if not fitting:
        return "none of the compiled layouts fits"
    ranked = sorted(fitting, key=lambda each: _slow(each[1]))
    lines = ["", "By the slow end of the prediction:", *(row(*each) for each in ranked), ""]
    best, plain = ranked[0], next((each for each in ranked if is_plain(each[0])), None)
    if plain is None:
        lines.append("Plain fsdp does not fit, or does not divide.")
    elif plain is best:
        spent = _exchanges(plain[1])
        lines.append(
            f"Nothing beats plain fsdp: exchanges that it waits for are {spent:.0%} of its step, "
            "and a mesh can save no more than that."
        )
    else:
        gain = _slow(plain[1]) / _slow(best[1]) - 1
        lines.append(f"The best is {gain:.0%} faster than plain fsdp (predicted):")
    return "\n".join([*lines, "  " + " ".join(flags(best[0]))])


def ranking_tree(rows: Ranking) -> list[dict[str, Any]]:
    """For JSON, in the order of compiling."""
    return [
        {"remat": each.remat, "dtype": each.dtype, "accumulate": each.accumulate}
        | {"closed_form_seconds": each.seconds}
        | tree(verdict)
        for each, verdict in rows
    ]


def compared(found: Any) -> str:
    """A prediction.Compared in two lines."""
    rates = found.rates
    return (
        f"measured {_ms(found.measured)} a call (median of {len(found.rounds)}: "
        f"{', '.join(_ms(each) for each in found.rounds)}), predicted at full rate "
        f"{_ms(found.predicted)}: {found.error:+.0%}\n"
        f"rates ({rates.source}): {rates.multiply / 1e12:.3g} TFLOP/s, {rates.move / 1e9:.3g} GB/s"
    )


def _slow(verdict: Verdict) -> float:
    return math.inf if verdict.seconds is None else verdict.seconds.slow


def _exchanges(verdict: Verdict) -> float:
    return 0.0 if verdict.seconds is None else verdict.seconds.waits / verdict.seconds.slow
