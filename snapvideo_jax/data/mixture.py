"""Several data sets in each batch, every one with its own number of rows: exact at every step.

Rows of a step's images, and of its videos, are dealt out in the order of the parts. A part counts
its own samples, so that what it shows does not depend on the others.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from snapvideo_jax.data import order
from snapvideo_jax.data.sources import Drawn


class Part(NamedTuple):
    """A data set, and how many images and videos of each batch are from it.

    draw: (sample number of this part, whether it is an image) -> what it shows.
    """

    draw: Callable[[int, bool], Drawn]
    images: int
    videos: int

    def rows(self, is_image: bool) -> int:
        """Returns the part's rows among a batch's images, or among its videos."""
        return self.images if is_image else self.videos


def draw(parts: Sequence[Part], g: int, is_image: bool) -> Drawn:
    """Returns what image g, or video g, of the mixture shows."""
    step, row = divmod(g, sum(part.rows(is_image) for part in parts))
    for part in parts:
        rows = part.rows(is_image)
        if row < rows:
            break
        row -= rows
    return part.draw(step * rows + row, is_image)


def part_seed(seed: int, number: int) -> int:
    """Returns the seed of part `number`, so that data sets of one size have orders of their own.

    The first part keeps the seed: alone, it is no mixture.
    """
    return int(order.generator(seed, number, "mixture").integers(2**62)) if number else seed
