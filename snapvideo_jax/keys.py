"""Named random streams: every draw is a function of (seed, index, name).

In training the index is the step, in sampling the window of a long video.
"""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray

Number = int | Int[Array, ""]


def streams(seed: Number, index: Number, names: tuple[str, ...]) -> dict[str, PRNGKeyArray]:
    """Returns one key a name. Another name changes no other stream; no key is ever stored."""
    root = jax.random.fold_in(jax.random.key(seed), index)
    return {name: jax.random.fold_in(root, zlib.crc32(name.encode())) for name in names}
