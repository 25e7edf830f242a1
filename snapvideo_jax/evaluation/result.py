"""The result of an evaluation as JSON: choices with their id, model, values; compared if alike."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snapvideo_jax import storage
from snapvideo_jax.errors import ConfigError, DataError, reason
from snapvideo_jax.evaluation.choices import digest, unlike
from snapvideo_jax.training.resume import flatten


class Value(NamedTuple):
    """A measured value and its standard error (of "is": the spread over splits), if it has one."""

    value: float
    error: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What one model reaches under one protocol.

    choices: everything that must be alike for two results to be comparable.
    model: what is compared: checkpoint, step, digest of the parameters, versions.
    values: name -> value and error.
    details: more than values, for this protocol alone.
    """

    choices: dict[str, Any]
    model: dict[str, Any]
    values: dict[str, Value]
    details: dict[str, Any]

    def fields(self) -> dict[str, Any]:
        """Returns the result as JSON holds it."""
        values = {name: value._asdict() for name, value in self.values.items()}
        return {
            "protocol": self.choices["protocol"],
            "protocol_id": digest(self.choices),
            "choices": self.choices,
            "model": self.model,
            "values": values,
            **self.details,
        }


def write(path: str | Path, result: Result) -> None:
    """Writes JSON; raises StorageError where that fails."""
    storage.write(path, json.dumps(result.fields(), indent=2).encode() + b"\n")


def read(path: str | Path) -> Result:
    """Reads what `write` wrote; raises DataError, one line, where it is damaged or was edited."""
    try:
        fields = json.loads(Path(path).read_bytes())
        protocol, id = fields.pop("protocol"), fields.pop("protocol_id")
        choices, model = fields.pop("choices"), fields.pop("model")
        values = {name: Value(**value) for name, value in fields.pop("values").items()}
        is_sound = protocol == choices["protocol"] and id == digest(choices) and flatten(model)
        is_sound = is_sound and all(math.isfinite(value) for value, _ in values.values())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is no result of launch.evaluate ({reason(error)})") from error
    if not is_sound:
        raise DataError(f"{path}: was changed after it was written; evaluate again")
    return Result(choices, model, values, details=fields)


def table(columns: dict[str, dict[str, Value]]) -> str:
    """Returns a row for each name of a value, "-" where a column lacks it.

    columns: title -> values.
    """
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    cell = lambda values, name: _text(values[name]) if name in values else "-"
    rows = [[name, *(cell(values, name) for values in columns.values())] for name in names]
    return _aligned([["", *columns], *rows])


def comparison(a: Result, b: Result) -> str:
    """Returns a table of the values of two results, b's less a's, and where the models differ.

    Raises ConfigError, one line, with every choice that differs: such values are not comparable.
    """
    if differences := unlike(a.choices, b.choices):
        raise ConfigError(f"results of unlike protocols: {', '.join(differences)}; measure alike")
    rows = [("", "A", "B", "B - A")]
    for name in (name for name in a.values if name in b.values):
        left, right = a.values[name], b.values[name]
        step, error = right.value - left.value, None
        if left.error is not None and right.error is not None:
            error = math.hypot(left.error, right.error)
        sign = "+" if step >= 0 else ""
        rows.append((name, _text(left), _text(right), sign + _text(Value(step, error))))
    return "\n".join([_aligned(rows), *(f"model: {each}" for each in unlike(a.model, b.model))])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = lambda row: "  ".join(f"{cell:{n}}" for cell, n in zip(row, widths, strict=True))
    return "\n".join(pad(row).rstrip() for row in rows)


def _text(value: Value) -> str:
    error = "" if value.error is None else f" +- {value.error:.2g}"
    return f"{value.value:.5g}{error}"
