"""Damage to the bytes of a file: flips, cuts, holes, repeats, and other bytes in their places."""

from collections.abc import Iterator

import numpy as np

TOKENS = (
    b"NaN",
    b"null",
    b"-1",
    b"[]",
    b"{}",
    b'""',
    b"1e999",
    b"9" * 5000,
    b"\0",
    b"\xff",
    b"[" * 300,
)


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields `count` contents that differ from `content`."""
    draw = np.random.default_rng(seed)
    done = 0
    while done < count:
        start, length = int(draw.integers(len(content))), int(draw.integers(1, 40))
        end = start + length
        flipped = bytes([content[start] ^ 1 << int(draw.integers(8))])
        damaged = (
            content[:start] + flipped + content[start + 1 :],
            content[:start] + flipped + content[start + 1 :],
            content[:start],
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start] + bytes(length) + content[end:],
            content[:start] + TOKENS[int(draw.integers(len(TOKENS)))] + content[start + 1 :],
            content + content[start:end],
        )[int(draw.integers(8))]
        if damaged != content:
            done += 1
            yield damaged
