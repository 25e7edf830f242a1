"""Kinds of values that come from outside: what a flag, a config's field or a JSON entry may be.

A kind holds a value or does not (`holds`), reads one from a flag's text (`read`), and says in words
what it holds (`str`): "--steps=0 must be a whole number from 1 to 100,000". No kind of number holds
not-a-number or an infinity, and none takes True for 1.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxtuple = _SHORT.maxlist = 8


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`, or one of those that are `special`."""

    least: int
    most: int
    special: tuple[int, ...] = ()

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is one."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.least <= value <= self.most or value in self.special

    def read(self, text: str) -> Any:
        """Returns the number that `text` spells, or `text`, which no kind of number holds."""
        try:
            return int(text)
        except ValueError:
            return text

    def __str__(self) -> str:
        return f"a whole number from {self.least:,} to {self.most:,}{_or(self.special)}"


@dataclass(frozen=True)
class Real:
    """A finite number from `least` to `most`, or one of those that are `special`."""

    least: float
    most: float
    special: tuple[float, ...] = ()

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is one; a whole number may be."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        finite = isinstance(value, int) or math.isfinite(value)
        return finite and (self.least <= value <= self.most or value in self.special)

    def read(self, text: str) -> Any:
        """Returns the number that `text` spells, or `text`, which no kind of number holds."""
        try:
            return float(text)
        except ValueError:
            return text

    def __str__(self) -> str:
        return f"a number from {self.least:,.12g} to {self.most:,.12g}{_or(self.special)}"


@dataclass(frozen=True)
class Truth:
    """True or False."""

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is one."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text:
    """A text that the operating system can hold as a file's name: without NUL."""

    most: int = 4096

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is one."""
        return isinstance(value, str) and len(value) <= self.most and "\0" not in value

    def __str__(self) -> str:
        return f"a text of at most {self.most:,} characters"


@dataclass(frozen=True)
class OneOf:
    """One of some words."""

    words: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is one."""
        return isinstance(value, str) and value in self.words

    def read(self, text: str) -> str:
        """Returns `text`, which may be one of the words or not."""
        return text

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Several:
    """From `least` to `most` values of one kind, as a tuple or a list."""

    kind: "Kind"
    least: int
    most: int

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is such a tuple."""
        if not isinstance(value, tuple | list):
            return False
        return self.least <= len(value) <= self.most and all(map(self.kind.holds, value))

    def read(self, text: str) -> Any:
        """Returns the values between the commas of `text`."""
        return [self.kind.read(part) for part in text.split(",")]

    def __str__(self) -> str:
        count = str(self.most) if self.least == self.most else f"{self.least} to {self.most:,}"
        return f"{count} values between commas, each {self.kind}"


@dataclass(frozen=True)
class Row:
    """A tuple with a value of each of some kinds."""

    kinds: tuple["Kind", ...]

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is such a tuple."""
        if not isinstance(value, tuple | list) or len(value) != len(self.kinds):
            return False
        return all(kind.holds(part) for kind, part in zip(self.kinds, value, strict=True))

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.kinds))})"


@dataclass(frozen=True)
class Table:
    """An object of JSON whose values are all of one kind, or of any."""

    kind: "Kind" = None

    def holds(self, value: Any) -> bool:
        """Returns whether `value` is one."""
        if not isinstance(value, dict):
            return False
        return self.kind is None or all(map(self.kind.holds, value.values()))

    def __str__(self) -> str:
        return "an object" if self.kind is None else f"an object of values, each {self.kind}"


Number = Whole | Real
Kind = Any  # one of the classes above


def shown(value: Any) -> str:
    """Writes a value for a message, on one short line, however long or deep it is."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except (ValueError, RecursionError):  # Python writes no number of over 4300 digits
        return f"a {type(value).__name__}"


def _or(special: Sequence[float]) -> str:
    return "".join(f", or {value:g}" for value in special)
