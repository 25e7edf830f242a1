"""rows.I.jsonl: a digest of every row of data that process I of a run was fed.

Written where launch.train is called with --record_rows. Steps that are run again after a kill are
in there twice, so that they too can be compared.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Shaped

from snapvideo_jax import storage
from snapvideo_jax.fields import STEP
from snapvideo_jax.kinds import Several, Text

LINE = {"step": STEP, "rows": Several(Text(64), 1, 2**24)}


def record(workdir: Path, step: int, batch: Mapping[str, Shaped[np.ndarray, "B ..."]]) -> None:
    """Adds the line of one step: a digest of each row of this process's part of the batch."""
    parts = zip(*(batch[name] for name in sorted(batch)), strict=True)
    digests = [hashlib.sha256(b"".join(x.tobytes() for x in row)).hexdigest() for row in parts]
    line = json.dumps({"step": step, "rows": digests})
    # A kill may have cut the line before: this one must not be its end.
    storage.append(workdir / f"rows.{jax.process_index()}.jsonl", f"\n{line}\n".encode())


def read(workdir: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yields (step, file, digests) of each whole line of all processes."""
    for path in sorted(workdir.glob("rows.*.jsonl")):
        for line in storage.read(path).splitlines():
            with contextlib.suppress(storage.Damaged):
                entry = storage.parse_object(line, LINE)
                yield entry["step"], path.name, entry["rows"]
