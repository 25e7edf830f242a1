"""CLIP's byte-pair tokens: captions -> ids, from the published list of merges.

The list is OpenAI's bpe_simple_vocab_16e6.txt.gz or Hugging Face's merges.txt. Captions are cleaned
as OpenAI does (entities, quotes, white space, case), but for its repair of texts that were decoded
by a wrong encoding (ftfy), which needs a package of its own.
"""

import gzip
import html
import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from snapvideo_jax.errors import DataError

CONTEXT = 77  # tokens of a text, first and last included
MERGES = 48_894
FIRST, LAST = 49_406, 49_407  # ids of the start and of the end of a text
MAX_BYTES = 2**24
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})  # noqa: RUF001
_CONTRACTIONS = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
_END = "</w>"


def _byte_symbols() -> dict[int, str]:
    """Returns a printable character for each byte, in the order of their ids.

    Latin letters, digits and signs stand for themselves, and come first; the others take the
    characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + i) for i, byte in enumerate(others)}


_SYMBOLS = _byte_symbols()


class Vocabulary(NamedTuple):
    """The ranks of pairs of symbols to merge, low ones first, and the id of every symbol."""

    ranks: dict[tuple[str, str], int]
    ids: dict[str, int]

    def encode(self, captions: Sequence[str]) -> Int[np.ndarray, "B 77"]:
        """Returns ids with 0 after the end; longer captions are cut, and end all the same."""
        ids = np.zeros((len(captions), CONTEXT), np.int32)
        for row, caption in zip(ids, captions, strict=True):
            tokens = [FIRST, *self.tokens(caption)][: CONTEXT - 1]
            row[: len(tokens) + 1] = [*tokens, LAST]
        return ids

    def tokens(self, caption: str) -> list[int]:
        """Returns the ids of a caption, without first and last."""
        symbols = itertools.chain.from_iterable(map(self._merge, words(caption)))
        return [self.ids[symbol] for symbol in symbols]

    def _merge(self, word: str) -> list[str]:
        """Joins the pair of lowest rank, all of its places from the left, until none has a rank."""
        parts = [_SYMBOLS[byte] for byte in word.encode()]
        parts[-1] += _END
        while True:
            ranked = [(self.ranks[p], p) for p in itertools.pairwise(parts) if p in self.ranks]
            if not ranked:
                return parts
            parts = list(_join(parts, min(ranked)[1]))


def vocabulary(ranks: dict[tuple[str, str], int]) -> Vocabulary:
    """Numbers the symbols: single bytes, bytes that end a word, and then what the ranks merge."""
    single = list(_SYMBOLS.values())
    ids = {symbol: i for i, symbol in enumerate([*single, *(s + _END for s in single)])}
    return Vocabulary(ranks, ids | {a + b: len(ids) + rank for (a, b), rank in ranks.items()})


def _join(parts: list[str], pair: tuple[str, str]) -> Iterable[str]:
    i = 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        yield "".join(parts[i : i + width])
        i += width


def words(caption: str) -> list[str]:
    """Splits a caption into contractions, runs of letters, single numbers and runs of signs."""
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", caption).translate(_QUOTES)))
    text = " ".join(text.split()).lower()
    result, i = [], 0
    while i < len(text):
        match = _CONTRACTIONS.match(text, i)
        kind = _kind(text[i])
        end = i + 1
        if match:
            end = match.end()
        elif kind != "N":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            result.append(text[i:end])
        i = end
    return result


def _kind(character: str) -> str:
    """Returns L for letters, N for numbers, a space, or S for every sign."""
    category = unicodedata.category(character)[0]
    return " " if character.isspace() else category if category in "LN" else "S"


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Reads the list of merges; raises DataError, one line, where it is damaged or another."""
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            lines = file.read(MAX_BYTES).decode().split("\n")[1 : MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the merges {path}: {reason}; copy the file again") from error
    merges = [tuple(line.split()) for line in lines]
    ranks = {(pair[0], pair[1]): i for i, pair in enumerate(merges) if len(pair) == 2}
    if len(ranks) != MERGES:
        raise DataError(
            f"{path}: holds {len(ranks)} merges in its first lines, CLIP has {MERGES}; give "
            "bpe_simple_vocab_16e6.txt.gz or the merges.txt beside a CLIP of Hugging Face"
        )
    return vocabulary(ranks)
