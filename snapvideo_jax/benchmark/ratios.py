"""How many times faster each FIT is than each U-Net, beside what the paper says."""

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
    """The U-Net's milliseconds per video over FIT's, by medians of rows of one kind.

    ratio_min, ratio_max: of single rounds where they were taken in turns, else the fastest step of
    one against the slowest of the other; of predicted rows one end of a band against the other end
    of the other. paper_ratio: the paper's, on A100; None where the models are not the paper's.
    """

    fit: str
    unet: str
    mode: str
    kind: str
    device: str
    devices: int
    dtype: str
    batch: int
    ratio: float
    ratio_min: float
    ratio_max: float
    interleaved: bool
    paper_ratio: float | None


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Compares every FIT with every U-Net that did the same work in the same way.

    That is: the same mode, kind, device, number of devices, dtype, attention, size of video and
    batch.
    """
    return [
        ratio(fit, unet)
        for fit, unet in itertools.product(rows, rows)
        if (fit.network, unet.network) == ("fit", "unet")
        and _same(fit) == _same(unet)
        and not (fit.out_of_memory or unet.out_of_memory)
    ]


def ratio(fit: Row, unet: Row) -> Ratio:
    """Compares two rows that differ in the configuration alone; raises ValueError for others."""
    if _same(fit) != _same(unet):
        raise ValueError(f"{fit.config} and {unet.config} were not timed alike")
    in_turns = fit.interleaved and unet.interleaved and len(fit.step_ms) == len(unet.step_ms)
    pairs = zip(unet.step_ms, fit.step_ms, strict=True) if in_turns else _extremes(unet, fit)
    spread = [unet_ms / fit_ms for unet_ms, fit_ms in pairs]
    return Ratio(
        fit=fit.config,
        unet=unet.config,
        mode=fit.mode,
        kind=fit.kind,
        device=fit.device,
        devices=fit.devices,
        dtype=fit.dtype,
        batch=fit.batch,
        ratio=statistics.median(unet.step_ms) / statistics.median(fit.step_ms),
        ratio_min=min(spread),
        ratio_max=max(spread),
        interleaved=in_turns,
        paper_ratio=_paper_ratio(fit, unet),
    )


def paper_ms(config: str, mode: str) -> float | None:
    """Returns the paper's milliseconds per video and A100; None for a model not in its table."""
    return PAPER.get(config.partition(":")[0], {}).get(mode)


def _paper_ratio(fit: Row, unet: Row) -> float | None:
    unet_ms, fit_ms = paper_ms(unet.config, unet.mode), paper_ms(fit.config, fit.mode)
    return unet_ms / fit_ms if unet_ms and fit_ms else None


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


def _extremes(unet: Row, fit: Row) -> list[tuple[float, float]]:
    """Returns (U-Net's, FIT's) milliseconds at the ends that are farthest apart."""
    return [(unet.least_ms, max(fit.step_ms)), (max(unet.step_ms), fit.least_ms)]
