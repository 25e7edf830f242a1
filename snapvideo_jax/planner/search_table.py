"""What a search ranks, for people to read and as a tree for JSON."""

import math
from collections.abc import Sequence
from typing import Any

from snapvideo_jax.planner import estimate_table
from snapvideo_jax.planner.estimate import Estimate
from snapvideo_jax.planner.estimate_table import ALIKE, axes_text
from snapvideo_jax.planner.search import Candidate, is_plain
from snapvideo_jax.units import percent_text, size_text, time_text

Ranking = Sequence[tuple[Candidate, Estimate]]


def flags(candidate: Candidate) -> list[str]:
    """Returns a layout as --config takes it."""
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in candidate.mesh.items()]
    model = [f"--config.model.{name}={getattr(candidate, name)}" for name in ("remat", "dtype")]
    return [*mesh, *model, f"--config.training.accumulate={candidate.accumulate}"]


def row(candidate: Candidate, estimate: Estimate) -> str:
    """Returns a layout and what it costs in one line."""
    axes = axes_text(candidate.mesh) or "one chip"
    layout = f"  {axes:<34} {candidate.dtype:<8} remat {candidate.remat:<5} "
    layout += f"accumulate {candidate.accumulate:>3}: "
    if estimate.seconds is None:
        return layout + f"does not fit, {size_text(estimate.total - estimate.limit)} too much"
    mfu = percent_text(estimate.mfu or 0.0)
    return (
        f"{layout}{time_text(estimate.seconds.slow)} a step, MFU {mfu}, "
        f"{size_text(estimate.total)} a chip"
    )


def ranking(rows: Ranking) -> str:
    """Returns the layouts that fit, the fastest first, and what the best is worth."""
    usable = [each for each in rows if each[1].seconds is not None]
    if not usable:
        return "none of the compiled layouts fits"
    by_time = sorted(usable, key=lambda each: _slow(each[1]))
    best, plain = by_time[0], next((each for each in by_time if is_plain(each[0])), None)
    return "\n".join(
        [
            "",
            "By the slow end of the prediction:",
            *(row(candidate, estimate) for candidate, estimate in by_time),
            "",
            worth(best[1], plain and plain[1]),
            "  " + " ".join(flags(best[0])),
        ]
    )


def worth(best: Estimate, plain: Estimate | None) -> str:
    """Says how much faster the best layout is than plain fsdp, or why nothing beats that."""
    if plain is None:
        return "Plain fsdp does not fit, or does not divide; the best is:"
    if plain is not best:
        gain = _slow(plain) / _slow(best) - 1
        faster = f"{percent_text(gain)} faster than" if gain >= ALIKE else "as fast as"
        return f"The best is {faster} plain fsdp (predicted):"
    waiting = 0.0 if plain.seconds is None else plain.seconds.waiting / plain.seconds.slow
    if not waiting:
        return "Nothing beats plain fsdp, which waits for no exchanges:"
    return (
        f"Nothing beats plain fsdp: exchanges that it waits for are {percent_text(waiting)} of its "
        "step, and a mesh can save no more than that:"
    )


def ranking_tree(rows: Ranking) -> list[dict[str, Any]]:
    """Returns the layouts for JSON, in the order of compiling."""
    return [
        {
            "remat": candidate.remat,
            "dtype": candidate.dtype,
            "accumulate": candidate.accumulate,
            "closed_form_seconds": candidate.seconds,
        }
        | estimate_table.tree(estimate)
        for candidate, estimate in rows
    ]


def _slow(estimate: Estimate) -> float:
    return math.inf if estimate.seconds is None else estimate.seconds.slow
