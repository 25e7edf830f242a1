"""Choices that decide a measured value: their digest, and where two sets of them differ."""

import hashlib
import json
from typing import Any

from snapvideo_jax.training.resume import flatten


def digest(choices: dict[str, Any]) -> str:
    """Returns the first 16 digits of the sha256 of all names and values (JSON)."""
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:16]


def unlike(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Returns "section.name value-of-a and value-of-b" for each choice that differs.

    A choice that one of them lacks is None there.
    """
    left, right = flatten(a), flatten(b)
    return [
        f"{name} {left.get(name)!r} and {right.get(name)!r}"
        for name in left | right
        if left.get(name) != right.get(name)
    ]
