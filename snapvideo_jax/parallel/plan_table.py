"""What the compiler said of a training step, for people and as a tree for JSON."""

import importlib.metadata
from collections import defaultdict
from typing import Any

from snapvideo_jax.parallel import topology
from snapvideo_jax.parallel.doctor_table import size_text
from snapvideo_jax.parallel.plan import Verdict


def text(verdict: Verdict) -> str:
    """The verdict in a line, what fills a chip's memory, and what chips send each other."""
    memory = verdict.memory
    rest = memory.limit - memory.total
    answer = f"fits, {size_text(rest)} to spare"
    if not verdict.fits:
        answer = f"does not fit, {size_text(-rest)} too much"
    lines = [
        f"{verdict.chips} x {verdict.chip}: {answer}",
        f"needs {size_text(memory.total)} of {size_text(memory.limit)} a chip: parameters "
        f"{size_text(memory.parameters)}, moments {size_text(memory.moments)}, EMA "
        f"{size_text(memory.ema)}, batch {size_text(memory.batch)}; temporaries "
        f"{size_text(memory.temporaries) if verdict.fits else 'unknown'}",
        "",
        *sent(verdict),
        f"predicted by the compiler (jax {_version('jax')}, {compiler()}) in "
        f"{verdict.compile_seconds:.0f} s",
    ]
    return "\n".join(lines)


def sent(verdict: Verdict) -> list[str]:
    """A line for each kind of collective: how many a step, bytes of one chip, the largest."""
    lines = [
        f"{kind:20}{count:>8} a step {size_text(size):>9} a chip, the largest {size_text(largest)}"
        for kind, count, size, largest in by_kind(verdict)
    ]
    return [*lines, ""] if lines else []


def by_kind(verdict: Verdict) -> list[tuple[str, int, int, int]]:
    """(kind, how many a step, bytes a chip in all, bytes of the largest), the costly first."""
    kinds = defaultdict(list)
    for collective in verdict.collectives:
        kinds[collective.kind].append(collective)
    rows = [
        (kind, sum(c.count for c in some), sum(c.count * c.bytes for c in some),
         max(c.bytes for c in some))
        for kind, some in kinds.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row[2])


def tree(verdict: Verdict) -> dict[str, Any]:
    """For JSON; all of it is predicted by the compiler."""
    return {
        "kind": "predicted",
        "fits": verdict.fits,
        "chips": verdict.chips,
        "chip": verdict.chip,
        "parameters": verdict.parameters,
        "hbm_bytes_per_chip": verdict.memory._asdict(),
        "collectives": [
            dict(kind=kind, count=count, bytes=size, largest_operand_bytes=largest)
            for kind, count, size, largest in by_kind(verdict)
        ],
        "compile_seconds": round(verdict.compile_seconds, 1),
        "versions": {"jax": _version("jax"), "compiler": compiler()},
    }


def compiler() -> str:
    """libtpu and its version, from beside the library where it says so."""
    beside = [str(topology.library().parent.parent)]
    found = importlib.metadata.distributions(name="libtpu", path=beside)
    return next((f"libtpu {each.version}" for each in found), "libtpu")


def _version(package: str) -> str:
    return importlib.metadata.version(package)
