"""How many times faster each network is than each rival, beside what the paper says."""

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from snapvideo_jax.benchmark.rows import Row

# Milliseconds per video per A100 GPU at 16 x 36 x 64, Table 2: training, inference.
PAPER = {
    "unet_85m": {"train": 133.2, "infer": 49.6},
    "unet_284m": {"train": 230.3, "infer": 105.1},
    "fit_500m": {"train": 69.5, "infer": 23.4},
    "fit_3b9": {"train": 526.0, "infer": 130.4},
}


class Ratio(NamedTuple):
    """The rival's milliseconds per video over those of `config`, by medians of rows of one kind.

    ratio_min, ratio_max: of single rounds where they were taken in turns, else the fastest step of
    one against the slowest of the other; of predicted rows one end of a band against the other end
    of the other. paper_ratio: the paper's, on A100; None where the models are not the paper's.
    parameters, flops: the rival's over those of `config`; flops as `Row.model_flops`.
    """

    config: str
    rival: str
    mode: str
    kind: str
    device: str
    devices: int
    dtype: str
    video: tuple[int, ...]
    batch: int
    ratio: float
    ratio_min: float
    ratio_max: float
    interleaved: bool
    paper_ratio: float | None
    parameters: float
    flops: float | None


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Compares each row with every later one that did the same work in the same way, its rival.

    That is: the same mode, kind, device, number of devices, dtype, attention, size of video and
    batch.
    """
    return [
        ratio(row, rival)
        for row, rival in itertools.combinations(rows, 2)
        if _same(row) == _same(rival) and not (row.out_of_memory or rival.out_of_memory)
    ]


def ratio(row: Row, rival: Row) -> Ratio:
    """Compares two rows that differ in the configuration alone; raises ValueError for others."""
    if _same(row) != _same(rival):
        raise ValueError(f"{row.config} and {rival.config} were not timed alike")
    in_turns = row.interleaved and rival.interleaved and len(row.step_ms) == len(rival.step_ms)
    pairs = zip(rival.step_ms, row.step_ms, strict=True) if in_turns else _extremes(rival, row)
    spread = [rival_ms / own_ms for rival_ms, own_ms in pairs]
    own_flops, flops = row.model_flops, rival.model_flops
    return Ratio(
        config=row.config,
        rival=rival.config,
        mode=row.mode,
        kind=row.kind,
        device=row.device,
        devices=row.devices,
        dtype=row.dtype,
        video=row.video,
        batch=row.batch,
        ratio=statistics.median(rival.step_ms) / statistics.median(row.step_ms),
        ratio_min=min(spread),
        ratio_max=max(spread),
        interleaved=in_turns,
        paper_ratio=_paper_ratio(row, rival),
        parameters=rival.parameters / row.parameters,
        flops=flops / own_flops if flops and own_flops else None,
    )


def paper_ms(config: str, mode: str) -> float | None:
    """Returns the paper's milliseconds per video and A100; None for a model not in its table."""
    return PAPER.get(config.partition(":")[0], {}).get(mode)


def _paper_ratio(row: Row, rival: Row) -> float | None:
    rival_ms, own_ms = paper_ms(rival.config, rival.mode), paper_ms(row.config, row.mode)
    return rival_ms / own_ms if rival_ms and own_ms else None


def _same(row: Row) -> tuple:
    return (
        row.mode,
        row.kind,
        row.device,
        row.devices,
        row.dtype,
        row.attention,
        row.video,
        row.batch,
    )


def _extremes(rival: Row, row: Row) -> list[tuple[float, float]]:
    """Returns (the rival's, the row's) milliseconds at the ends that are farthest apart."""
    return [(rival.least_ms, max(row.step_ms)), (max(rival.step_ms), row.least_ms)]
