"""Named random streams: every draw of a run is a function of (seed, step, name)."""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray


def streams(
    seed: int, step: Int[Array, ""] | int, names: tuple[str, ...]
) -> dict[str, PRNGKeyArray]:
    """Returns one key a name. Another name changes no other stream; no key is ever stored."""
    root = jax.random.fold_in(jax.random.key(seed), step)
    return {name: jax.random.fold_in(root, zlib.crc32(name.encode())) for name in names}
