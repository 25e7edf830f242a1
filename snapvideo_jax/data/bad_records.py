"""Which files could not be used: each listed one time, with a count, and how many are too many."""

import json
import threading
import time
from collections import deque
from pathlib import Path

from snapvideo_jax import storage
from snapvideo_jax.errors import DataError

WINDOW = 1000  # records, of which a share may be bad
_SELDOM = 10  # seconds between two counts of a long list


class BadRecords:
    """The list of a run, a line of JSON for each file: path, reason, count. Threads may share it.

    The counts of earlier starts of the run are gone on with.
    """

    def __init__(self, path: Path, max_fraction: float):
        """Reads the list where there is one; writes none before a record is bad.

        Args:
          path: the list.
          max_fraction: share of the last 1,000 records, good and bad, that may be bad.
        """
        self._path, self._max_fraction = path, max_fraction
        self._window: deque[bool] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self._rows = _read(path)
        self._written = 0.0

    def good(self) -> None:
        """Counts a record that could be used."""
        with self._lock:
            self._window.append(False)

    def bad(self, name: str, reason: str) -> None:
        """Lists a record that could not be used.

        Raises DataError if they are too many, and StorageError if the list cannot be written.
        """
        with self._lock:
            self._window.append(True)
            count = self._rows[name]["count"] if name in self._rows else 0
            self._rows[name] = {"path": name, "reason": reason, "count": count + 1}
            too_many = self._too_many()
            self._write(name, force=not count or too_many)
        if too_many:
            raise DataError(
                f"{sum(self._window)} of the last {WINDOW} files read cannot be used, more than "
                f"data.max_bad_fraction={self._max_fraction:g}; {self._path} lists them; the last: "
                f"{reason}"
            )

    def _too_many(self) -> bool:
        full = len(self._window) == WINDOW
        return full and sum(self._window) > self._max_fraction * WINDOW

    def _write(self, name: str, force: bool) -> None:
        """Adds the line of a new file, or writes the list anew, a long one not each time."""
        if len(self._rows) > WINDOW and time.monotonic() < self._written + _SELDOM and not force:
            return
        if self._rows[name]["count"] == 1:
            storage.append(self._path, _line(self._rows[name]))
            return
        self._written = time.monotonic()
        storage.write(self._path, b"".join(map(_line, self._rows.values())))


def _line(row: dict) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _read(path: Path) -> dict[str, dict]:
    """Returns the rows of a list by path; lines that are none of ours are left out."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    rows = {}
    for line in lines:
        try:
            row = json.loads(line)
            # Lists of earlier versions have no counts, but a line each time.
            count = row.get("count", 1 + rows.get(row["path"], {"count": 0})["count"])
            rows[row["path"]] = {"path": row["path"], "reason": row["reason"], "count": int(count)}
        except (ValueError, TypeError, LookupError, AttributeError):
            continue
    return rows
