"""What the sharding doctor found, for people (tables of 120 columns) and as a tree for JSON."""

import math
import re
import textwrap
from collections import defaultdict
from typing import Any

from jax.sharding import Mesh

from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.planner.doctor import COPIES, Diagnosis, Row, split_along

WIDTH = 120
STACK = "network/blocks"  # where nn.scan stacks the parameters of FIT's blocks along axis 0
# Columns: parameters, how many, shape and axes, shard, bytes of parameters, bytes of all COPIES.
COLUMNS = "{:42} {:>3} {:38} {:18} {:>7} {:>7}"
NAME_WIDTH, INDENT = 42, 6  # of the first column, and of a name's second line


def text(found: Diagnosis) -> str:
    """All of it: parameters, totals, what is held more than once, problems, legal sizes."""
    parts = (header(found), parameters(found), totals(found), copies(found), verdict(found))
    return "\n\n".join(part for part in parts if part)


def header(found: Diagnosis) -> str:
    """The mesh, and how to read the table below."""
    count = sum(math.prod(row.shape) for row in found.rows)
    return (
        f"{count:,} parameters on {found.num_devices} devices: {_sizes(found.mesh)}\n"
        "1024/fsdp+group: 1024 split over mesh.fsdp x mesh.group; ! where that does not divide; "
        "axes of size 1 are left out.\nBytes are of one device, float32; state is parameters, "
        "moments, EMA and gradients."
    )


def parameters(found: Diagnosis) -> str:
    """A section for each part of the model and a line for each kind of parameter, large first."""
    sections = defaultdict(list)
    for row in found.rows:
        sections[section_of(row)].append(row)
    title = COLUMNS.format("parameters", "n", "shape / axes", "on a device", "params", "state")
    lines = [title]
    for name, rows in sorted(sections.items(), key=lambda item: -_size(item[1])):
        stack = f"stacks of {rows[0].shape[0]} blocks, never split" if name == STACK else ""
        lines += ["", *_lines([name], len(rows), stack, "", _size(rows))]
        for part, alike in sorted(merged(rows, name), key=lambda item: -_size(item[1])):
            shape, shard = _shape(alike[0], found.mesh), " x ".join(map(str, alike[0].shard))
            lines += _lines(_broken("  " + part), len(alike), shape, shard, _size(alike))
    return "\n".join(lines)


def totals(found: Diagnosis) -> str:
    """Bytes a device by kind, and their sum."""
    held, replicas = sum(found.totals.values()), found.mesh.shape["data"]
    parts = " + ".join(f"{name} {size_text(size)}" for name, size in found.totals.items())
    line = f"A device holds {size_text(held)}: {parts}; activations come on top."
    if replicas > 1:
        line += f" Each of the {replicas} replicas of mesh.data holds all of it."
    return _wrapped(line)


def copies(found: Diagnosis) -> str:
    """What the devices of a replica hold more than once, why, and how much that costs."""
    if not found.copies:
        return ""
    table = "{:76} {:>10} {:>6} {:>12} {:>12}"
    lines = [table.format("Held more than once", "parameters", "copies", "on a device", "to spare")]
    for each in found.copies:
        sizes = size_text(each.size), size_text(each.spare)
        lines.append(table.format("  " + each.why, each.parameters, each.copies, *sizes))
    return "\n".join(lines)


def verdict(found: Diagnosis) -> str:
    """All problems, and the sizes of each axis that have none."""
    lines = [f"Problems: {len(found.problems) or 'none'}"]
    lines += [_wrapped(problem, "  ") for problem in found.problems]
    lines.append(f"Legal sizes on {found.num_devices} devices, each axis by itself:")
    lines += [f"  mesh.{axis:7}{_listed(sizes)}" for axis, sizes in found.legal.items()]
    return "\n".join(lines)


def tree(found: Diagnosis) -> dict[str, Any]:
    """The same as plain data, every parameter by itself; sizes are bytes a device."""
    return {
        "devices": found.num_devices,
        "mesh": dict(found.mesh.shape),
        "parameters": [row._asdict() for row in found.rows],
        "totals": found.totals,
        "held_more_than_once": [each._asdict() for each in found.copies],
        "problems": found.problems,
        "legal": found.legal,
    }


def merged(rows: list[Row], section: str) -> list[tuple[str, list[Row]]]:
    """Rows of one shape whose paths differ in single names, together: "global{0-3}/o/kernel"."""
    lines = [(tuple(row.name.removeprefix(section + "/").split("/")), [row]) for row in rows]
    for depth in range(1, 1 + max(len(names) for names, _ in lines)):
        alike = defaultdict(list)
        for names, held in lines:
            at = len(names) - depth
            others = (names[:at], names[at + 1 :]) if at >= 0 else names
            alike[others, held[0].shape, held[0].axes].append((names, held))
        lines = [_joined(group, depth) for group in alike.values()]
    return [("/".join(names), held) for names, held in lines]


def _joined(
    group: list[tuple[tuple[str, ...], list[Row]]], depth: int
) -> tuple[tuple[str, ...], list[Row]]:
    """One line for all of a group, which differ in the name `depth` from the end."""
    names, held = group[0]
    if len(group) == 1:
        return names, held
    at = len(names) - depth
    differing = choice([each[at] for each, _ in group])
    return (*names[:at], differing, *names[at + 1 :]), [row for _, rows in group for row in rows]


def choice(names: list[str]) -> str:
    """Names as one: q, k -> "{k,q}"; global0, global1, read -> "{global{0-1},read}"."""
    numbers = defaultdict(list)
    for name in sorted(names):
        stem = name.rstrip("0123456789")
        numbers[stem].append(name.removeprefix(stem))
    parts = [stem + _range(found) for stem, found in numbers.items()]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"


def _range(numbers: list[str]) -> str:
    """0, 1, 2 -> "{0-2}"; others with commas, and one alone as it is."""
    if len(numbers) == 1:
        return numbers[0]
    whole = sorted(int(number) for number in numbers if number)
    run = len(whole) == len(numbers) == whole[-1] - whole[0] + 1
    return f"{{{whole[0]}-{whole[-1]}}}" if run else f"{{{','.join(numbers)}}}"


def size_text(size: int) -> str:
    """Bytes with three digits and a decimal unit: 15_684_047_040 -> "15.7 GB"."""
    power = 0 if size < 1000 else min(4, int(math.log10(size * (1 + 5e-4)) // 3))
    scaled = size / 1000**power
    digits = 0 if power == 0 else max(0, 2 - int(math.log10(scaled)))
    return f"{scaled:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def section_of(row: Row) -> str:
    """The part of the model that a parameter belongs to."""
    return STACK if row.name.startswith(STACK + "/") else row.name.split("/")[0]


def _size(rows: list[Row]) -> int:
    return sum(row.size for row in rows)


def _broken(name: str) -> list[str]:
    """A path in pieces that fit their column, broken behind a slash, or a comma in long names."""
    lines = [""]
    for part in re.findall(r"[^/]+/?", name):
        long = len(part) > NAME_WIDTH - INDENT
        for piece in re.findall(r"[^,]+,?", part) if long else [part]:
            if len(lines[-1] + piece) > NAME_WIDTH:
                lines.append(" " * INDENT)
            lines[-1] += piece
    return lines


def _lines(name: list[str], count: int, shape: str, shard: str, size: int) -> list[str]:
    sizes = size_text(size), size_text(sum(COPIES.values()) * size)
    return [COLUMNS.format(name[0], count, shape, shard, *sizes), *name[1:]]


def _shape(row: Row, mesh: Mesh) -> str:
    def dimension(size: int, axes: tuple[str, ...]) -> str:
        misfit = "!" if size % meshes.ways(mesh, axes) else ""
        split = "+".join(split_along(axes, mesh))
        return f"{size}/{split}{misfit}" if split else str(size)

    return " x ".join(map(dimension, row.shape, row.axes))


def _sizes(mesh: Mesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))


def _wrapped(line: str, indent: str = "") -> str:
    return textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
