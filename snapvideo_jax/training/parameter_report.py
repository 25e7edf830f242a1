"""How many parameters a model has, and where: some lines for the screen, a table for a file."""

import re
from collections import Counter
from typing import Any

import jax

from snapvideo_jax import trees
from snapvideo_jax.units import size_text

SUMMARY_LINES = 8  # beside the total


def summary(params: Any) -> str:
    """Returns how many parameters there are in all, and in each of the largest parts.

    A part is a path of at most three names; parts that differ in a number alone are one
    ("network/blocks/global*"). What holds more than a third of the parameters is shown as its
    parts. `params` may be abstract.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes: Counter[tuple[str, ...]] = Counter()
    for path, leaf in leaves:
        sizes[tuple(re.sub(r"\d.*", "*", name) for name in trees.names(path))] += leaf.size
    total, size = sizes.total(), sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    parts = _children(sizes, ())
    while parts[largest := max(parts, key=parts.__getitem__)] > total / 3:
        if len(largest) == 3 or largest in sizes:
            break
        del parts[largest]
        parts.update(_children(sizes, largest))
    rows = [("/".join(path), count) for path, count in parts.most_common()]
    if len(rows) > SUMMARY_LINES:
        rest = rows[SUMMARY_LINES - 1 :]
        rows[SUMMARY_LINES - 1 :] = [(f"{len(rest)} smaller parts", sum(n for _, n in rest))]
    name_width, width = max(len(name) for name, _ in rows), len(f"{total:,}")
    return "\n".join(
        [f"{total:,} parameters, {size_text(size)}"]
        + [f"  {name:{name_width}}  {n:{width},}  {100 * n / total:3.0f} %" for name, n in rows]
    )


def _children(sizes: Counter[tuple[str, ...]], parent: tuple[str, ...]) -> Counter[tuple[str, ...]]:
    """Returns the sizes of the parts one name below `parent`."""
    depth = len(parent)
    children: Counter[tuple[str, ...]] = Counter()
    for path, size in sizes.items():
        if path[:depth] == parent:
            children[path[: depth + 1]] += size
    return children


def table(params: Any) -> str:
    """Returns names, shapes, sizes and the total, as clu prints them."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(params, include_stats=False)
