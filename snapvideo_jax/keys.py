"""Named random streams: every draw of a run is a function of (seed, step, name)."""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray

Number = int | Int[Array, ""]


def streams(seed: Number, step: Number, names: tuple[str, ...]) -> dict[str, PRNGKeyArray]:
    """Returns one key a name. Another name changes no other stream; no key is ever stored."""
    root = jax.random.fold_in(jax.random.key(seed), step)
    return {name: jax.random.fold_in(root, zlib.crc32(name.encode())) for name in names}
