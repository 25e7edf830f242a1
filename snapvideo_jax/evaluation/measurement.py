"""A measured value with all that it depends on, as JSON; unlike protocols are never compared."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, DataError, reason
from snapvideo_jax.evaluation import choices


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What must be alike for two values of a metric to be comparable."""

    metric: str  # "fvd", "fid", "clipsim", ...
    distance: str  # "frechet", "limit", "mmd", ...; "" for a score of one set
    features: str  # the network, or "random_conv", "factors"
    weights_sha256: str  # of the feature file; "" without one
    variant: str  # whose resizing and constants, as `metrics.VARIANTS` has it
    n_real: int  # 0 for a score of one set
    n_generated: int
    reference: str  # data set and split
    frames: int
    frame_rate: float  # frames per second, of both sets
    height: int  # pixels of the videos, before any resize
    width: int
    compression: str  # of both sets: "none", "h264 crf 18", ...

    def digest(self) -> str:
        """Returns the first 16 digits of the sha256 of all fields."""
        return choices.digest(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A value, how sure it is, and what was measured.

    error: standard error or spread, as the metric has it; None where it has none.
    model: checkpoint and its digest, EMA or not, sampler, steps, guidance, seed.
    """

    value: float
    error: float | None
    protocol: Protocol
    model: dict[str, Any]


def write(path: str | Path, measurement: Measurement) -> None:
    """Writes JSON with the protocol's digest; raises StorageError where that fails."""
    fields = dataclasses.asdict(measurement) | {"protocol_digest": measurement.protocol.digest()}
    storage.write(path, json.dumps(fields, indent=2).encode() + b"\n")


def read(path: str | Path) -> Measurement:
    """Reads what `write` wrote; raises DataError, one line, where it is damaged or was edited."""
    try:
        fields = json.loads(Path(path).read_bytes())
        digest = fields.pop("protocol_digest")
        protocol = Protocol(**fields.pop("protocol"))
        measurement = Measurement(protocol=protocol, **fields)
        is_number = math.isfinite(measurement.value)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is no measurement ({reason(error)[:200]})") from error
    if digest != protocol.digest() or not is_number:
        raise DataError(f"{path}: was changed after it was written; measure again")
    return measurement


def difference(a: Measurement, b: Measurement) -> float:
    """Returns a's value less b's; raises ConfigError, one line, where their protocols differ."""
    of_a, of_b = dataclasses.asdict(a.protocol), dataclasses.asdict(b.protocol)
    if unlike := choices.unlike(of_a, of_b):
        raise ConfigError(f"two values of unlike protocols: {', '.join(unlike)}; measure alike")
    return a.value - b.value
