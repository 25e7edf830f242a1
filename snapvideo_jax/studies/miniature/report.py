"""The miniature as one page: its tables beside the paper's, and verdicts where seeds agree."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from snapvideo_jax.benchmark.report import Report, Table, markdown_table, source_line
from snapvideo_jax.evaluation import noise_levels
from snapvideo_jax.studies.miniature import scoring
from snapvideo_jax.studies.miniature.units import FIT, FIT_EQUAL_VIDEOS, UNET

TITLE = "The paper in miniature"
# FID and FVD of Table 3 of the paper, FIT 500M at 16 x 36 x 64; None: not in it.
TABLE_3 = {
    "edm": (6.58, 39.95),
    "scaled": (4.03, 31.00),
    "half": (4.45, 34.89),
    "one": None,
    "images": (3.50, 24.88),
    FIT: (3.07, 27.79),
    "double": None,
}
# FID and FVD of Table 2: U-Net 284M and FIT 500M, at equal videos seen.
TABLE_2 = {UNET: (4.90, 23.76), FIT_EQUAL_VIDEOS: (3.07, 27.79), FIT: None}
NAMES = {UNET: "U-Net", FIT_EQUAL_VIDEOS: "FIT, equal videos", FIT: "ours"}
MIDDLE = noise_levels.LEVELS.index(2.0)

# What rows are compared by, and whether less of it is better.
MEASURES: dict[str, tuple[Callable[[Mapping[str, Any]], float], bool]] = {
    "Frechet": (lambda unit: unit["frechet"], True),
    "loss at noise 2": (lambda unit: unit["losses"][MIDDLE], True),
    "all right, seen": (lambda unit: unit["seen"]["all"], False),
    "held out": (lambda unit: unit["held_out"]["all"], False),
}


def tables(study: Report) -> list[Table]:
    """Returns Table 3, its verdicts, Table 2, the errors by noise, and Figures 5, 6 and 2."""
    return [
        _noise_laws(study),
        _verdicts(study, "Table 3: is ours better?", [FIT], rivals=TABLE_3),
        _networks(study),
        _verdicts(
            study, "Table 2: is FIT better than the U-Net?", [FIT_EQUAL_VIDEOS, FIT], rivals=[UNET]
        ),
        _losses(study),
        _sweep(study, "guidance", "w", "Figure 5: guidance"),
        _sweep(study, "sampler_steps", "steps", "Figure 6: steps of the sampler"),
        _averages(study),
    ]


def units(study: Report, row: str) -> list[Mapping[str, Any]]:
    """Returns the units of a row, a seed each."""
    return [unit for unit in study["rows"] if unit["row"] == row]


def values(study: Report, row: str, measure: str) -> list[float]:
    """Returns a measure of a row, a number for each seed."""
    return [MEASURES[measure][0](unit) for unit in units(study, row)]


def verdict(ours: Sequence[float], theirs: Sequence[float], less_is_better: bool) -> str:
    """Says whether ours is better: "yes" or "no" where all seeds of one beat all of the other's.

    Else "open".
    """
    if not less_is_better:
        ours, theirs = [-value for value in ours], [-value for value in theirs]
    if max(ours) < min(theirs):
        return "yes"
    return "no" if min(ours) > max(theirs) else "open"


def _table(study: Report, title: str, header: Sequence[str], lines: Sequence[Sequence[str]]):
    return Table(
        title=title,
        source=source_line(study, "measured"),
        load="",
        header=tuple(header),
        lines=[tuple(line) for line in lines],
    )


def _measured(study: Report, row: str) -> list[str]:
    """Returns the cells of MEASURES: the mean over seeds, and from where to where."""
    cells = []
    for measure, (_, less_is_better) in MEASURES.items():
        seeds = values(study, row, measure)
        number = (lambda x: f"{x:.4g}") if less_is_better else (lambda x: f"{x:.0%}")
        cells.append(
            f"{number(statistics.mean(seeds))} ({number(min(seeds))} to {number(max(seeds))})"
        )
    return cells


def _paper(figures: tuple[float, float] | None) -> str:
    return "-" if figures is None else f"{figures[0]:.2f}, {figures[1]:.2f}"


def _noise_laws(study: Report) -> Table:
    lines = [
        (
            NAMES.get(row, row),
            f"{study['laws'][row]['sigma_data']:g}",
            f"{study['laws'][row]['sigma_in']:g}"
            + (", images 1" if study["laws"][row]["image_sigma_in"] else ""),
            *_measured(study, row),
            _paper(paper),
        )
        for row, paper in TABLE_3.items()
        if units(study, row)
    ]
    header = ("noise law", "sigma_data", "sigma_in", *MEASURES, "paper: FID, FVD")
    return _table(study, "Table 3: noise laws", header, lines)


def _networks(study: Report) -> Table:
    lines = []
    for row, paper in TABLE_2.items():
        one = units(study, row)[0]
        lines.append(
            (
                "FIT, equal seconds" if row == FIT else NAMES[row],
                f"{one['parameters']:,}",
                f"{one['gflop_per_video']:.3f}",
                f"{one['videos']:,}",
                f"{statistics.mean(unit['seconds'] for unit in units(study, row)):.0f}",
                *_measured(study, row),
                _paper(paper),
            )
        )
    header = ("network", "parameters", "GFLOP", "videos seen", "s of steps", *MEASURES)
    return _table(study, "Table 2: FIT and U-Net", (*header, "paper: FID, FVD"), lines)


def _verdicts(study: Report, title: str, ours: Sequence[str], rivals: Iterable[str]) -> Table:
    lines = [
        (
            f"{NAMES.get(mine, mine)} against {NAMES.get(rival, rival)}",
            *(
                verdict(values(study, mine, name), values(study, rival, name), less)
                for name, (_, less) in MEASURES.items()
            ),
        )
        for mine in ours
        for rival in rivals
        if rival != mine and units(study, rival)
    ]
    return _table(study, title, ("in every seed", *MEASURES), lines)


def _losses(study: Report) -> Table:
    rows: list[str] = list(dict.fromkeys(unit["row"] for unit in study["rows"]))
    lines = [
        (
            NAMES.get(row, row),
            *(
                f"{statistics.mean(level):.4f}"
                for level in zip(*(unit["losses"] for unit in units(study, row)), strict=True)
            ),
        )
        for row in rows
    ]
    header = ("mean over seeds, at noise", *(f"{nu:g}" for nu in noise_levels.LEVELS))
    return _table(study, "Loss by noise, on held-out compositions", header, lines)


def _sweep(study: Report, field: str, name: str, title: str) -> Table:
    lines = []
    for points in zip(*(unit[field] for unit in units(study, FIT)), strict=True):
        frechets = [point["frechet"] for point in points]
        seen, held_out = ([point[kind]["all"] for point in points] for kind in ("seen", "held_out"))
        means = f"{statistics.mean(seen):.0%}", f"{statistics.mean(held_out):.0%}"
        lines.append((f"{points[0][name]:g}", f"{statistics.mean(frechets):.4g}", *means))
    return _table(study, title, (name, "Frechet", "all right, seen", "held out"), lines)


def _averages(study: Report) -> Table:
    lines = [
        (
            f"{one['frames']} x {one['side']} x {one['side']}",
            f"{one['snr']:.1f}",
            f"{one['lost']:.1%}",
        )
        for one in study["averages"]
    ]
    header = ("block, frames x pixels", "SNR in dB at u = 1", "variance lost within blocks")
    return _table(study, "Figure 2: noise and averages", header, lines)


def markdown(study: Report, pictures: Mapping[str, bytes]) -> str:
    """Returns reproduce.md: what was done, the tables, and links to the pictures beside it."""
    seeds = len(units(study, FIT))
    summary = (
        f"Each row is the mean of {seeds} seed{'s' * (seeds > 1)}, and in parentheses from where "
        "to where they go. A verdict is given only where every seed of one row beats every seed of "
        "the other. Frechet: of fixed random convolutions, which is no FVD. Loss: |D - x|^2 under "
        "noise of nu = sigma sigma_in, in units of x. All right: the oracle reads every fact of "
        f"the caption from the sample; {scoring.PROMPTS} prompts of each kind. The U-Net takes as "
        "many steps as fit into the seconds of FIT's."
    )
    source = source_line(study, "measured").replace(study["command"], f"`{study['command']}`")
    parts = [f"# {TITLE}", summary, f"{source}."]
    for table in tables(study):
        parts += [f"## {table.title}", markdown_table(table)]
    parts += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"
