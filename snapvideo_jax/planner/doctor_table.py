"""A diagnosis of the sharding doctor, for people (tables of 120 columns) and as a tree for JSON."""

import math
import re
import textwrap
from collections import defaultdict
from typing import Any

from snapvideo_jax.parallel import mesh as meshes
from snapvideo_jax.parallel.mesh import AnyMesh
from snapvideo_jax.planner.doctor import COPIES, Diagnosis, Placement, splitting_axes
from snapvideo_jax.units import size_text

WIDTH = 120
STACK = "network/blocks"  # where nn.scan stacks the parameters of blocks along axis 0
# Columns: parameters, their number, shape and axes, shard, bytes of parameters and of all COPIES.
COLUMNS = "{:42} {:>3} {:38} {:18} {:>7} {:>7}"
NAME_WIDTH, INDENT = 42, 6  # of the first column, and of a name's second line


def text(diagnosis: Diagnosis) -> str:
    """Returns parameters, totals, what is held more than once, problems and legal sizes."""
    parts = (
        header(diagnosis),
        parameters(diagnosis),
        totals(diagnosis),
        copies(diagnosis),
        problems(diagnosis),
    )
    return "\n\n".join(part for part in parts if part)


def header(diagnosis: Diagnosis) -> str:
    """Returns the mesh, and how to read the table below it."""
    count = sum(math.prod(placement.shape) for placement in diagnosis.placements)
    return (
        f"{count:,} parameters on {diagnosis.num_devices} devices: {_sizes(diagnosis.mesh)}\n"
        "1024/fsdp+group: 1024 split over mesh.fsdp x mesh.group; ! where that does not divide; "
        "axes of size 1 are left out.\nBytes are of one device, float32; state is parameters, "
        "moments, EMA and gradients."
    )


def parameters(diagnosis: Diagnosis) -> str:
    """Returns sections for the parts of the model, lines for kinds of parameters, large first."""
    sections = defaultdict(list)
    for placement in diagnosis.placements:
        sections[section_of(placement)].append(placement)
    title = COLUMNS.format("parameters", "n", "shape / axes", "on a device", "params", "state")
    lines = [title]
    for name, section in sorted(sections.items(), key=lambda item: -_size(item[1])):
        stack = f"stacks of {section[0].shape[0]} blocks, never split" if name == STACK else ""
        lines += ["", *_lines([name], section, shape=stack, shard="")]
        for part, alike in sorted(merge(section, name), key=lambda item: -_size(item[1])):
            shape = _shape(alike[0], diagnosis.mesh)
            shard = " x ".join(map(str, alike[0].shard))
            lines += _lines(_break("  " + part), alike, shape=shape, shard=shard)
    return "\n".join(lines)


def totals(diagnosis: Diagnosis) -> str:
    """Returns the bytes of a device by kind, and their sum."""
    total, replicas = sum(diagnosis.totals.values()), diagnosis.mesh.shape["data"]
    parts = " + ".join(f"{name} {size_text(size)}" for name, size in diagnosis.totals.items())
    line = f"A device holds {size_text(total)}: {parts}; activations come on top."
    if replicas > 1:
        line += f" Each of the {replicas} replicas of mesh.data holds all of it."
    return _wrap(line)


def copies(diagnosis: Diagnosis) -> str:
    """Returns what the devices of a replica hold more than once, why, and how much that costs."""
    if not diagnosis.copies:
        return ""
    table = "{:76} {:>10} {:>6} {:>12} {:>12}"
    lines = [table.format("Held more than once", "parameters", "copies", "on a device", "to spare")]
    for each in diagnosis.copies:
        sizes = size_text(each.size), size_text(each.spare)
        lines.append(table.format("  " + each.reason, each.parameters, each.copies, *sizes))
    return "\n".join(lines)


def problems(diagnosis: Diagnosis) -> str:
    """Returns all problems, and the sizes of each axis that have none."""
    lines = [f"Problems: {len(diagnosis.problems) or 'none'}"]
    lines += [_wrap(problem, "  ") for problem in diagnosis.problems]
    lines.append(f"Legal sizes on {diagnosis.num_devices} devices, each axis by itself:")
    for axis, sizes in diagnosis.legal.items():
        lines.append(f"  mesh.{axis:7}{', '.join(map(str, sizes))}")
    return "\n".join(lines)


def tree(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns a diagnosis as plain data, every parameter by itself; sizes are bytes a device."""
    return {
        "devices": diagnosis.num_devices,
        "mesh": dict(diagnosis.mesh.shape),
        "parameters": [placement._asdict() for placement in diagnosis.placements],
        "totals": diagnosis.totals,
        "copies": [each._asdict() for each in diagnosis.copies],
        "problems": diagnosis.problems,
        "legal": diagnosis.legal,
    }


def merge(placements: list[Placement], section: str) -> list[tuple[str, list[Placement]]]:
    """Joins parameters of one shape whose paths differ in single names: "global{0-3}/o/kernel"."""
    names_of = lambda placement: tuple(placement.name.removeprefix(section + "/").split("/"))
    lines = [(names_of(placement), [placement]) for placement in placements]
    for depth in range(1, 1 + max(len(names) for names, _ in lines)):
        groups = defaultdict(list)
        for names, some in lines:
            at = len(names) - depth
            others = (names[:at], names[at + 1 :]) if at >= 0 else names
            groups[others, some[0].shape, some[0].axes].append((names, some))
        lines = [_join(group, depth) for group in groups.values()]
    return [("/".join(names), some) for names, some in lines]


def _join(
    group: list[tuple[tuple[str, ...], list[Placement]]], depth: int
) -> tuple[tuple[str, ...], list[Placement]]:
    """Returns one line for all of a group, which differ in the name `depth` from the end."""
    names, some = group[0]
    if len(group) == 1:
        return names, some
    at = len(names) - depth
    alternatives = choice([each[at] for each, _ in group])
    all_names = (*names[:at], alternatives, *names[at + 1 :])
    return all_names, [placement for _, some in group for placement in some]


def choice(names: list[str]) -> str:
    """Writes names as one: q, k -> "{k,q}"; global0, global1, read -> "{global{0-1},read}"."""
    numbers = defaultdict(list)
    for name in sorted(names):
        stem = name.rstrip("0123456789")
        numbers[stem].append(name.removeprefix(stem))
    parts = [stem + _range(some) for stem, some in numbers.items()]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"


def _range(numbers: list[str]) -> str:
    """Writes 0, 1, 2 as "{0-2}", others with commas, and a single one as it is."""
    if len(numbers) == 1:
        return numbers[0]
    whole = sorted(int(number) for number in numbers if number)
    run = len(whole) == len(numbers) == whole[-1] - whole[0] + 1
    return f"{{{whole[0]}-{whole[-1]}}}" if run else f"{{{','.join(numbers)}}}"


def section_of(placement: Placement) -> str:
    """Returns the part of the model that a parameter belongs to."""
    name = placement.name
    return STACK if name.startswith(STACK + "/") else name.split("/")[0]


def _size(placements: list[Placement]) -> int:
    return sum(placement.size for placement in placements)


def _break(name: str) -> list[str]:
    """Breaks a path to fit its column, behind a slash, or behind a comma in long names."""
    lines = [""]
    for part in re.findall(r"[^/]+/?", name):
        long = len(part) > NAME_WIDTH - INDENT
        for piece in re.findall(r"[^,]+,?", part) if long else [part]:
            if len(lines[-1] + piece) > NAME_WIDTH:
                lines.append(" " * INDENT)
            lines[-1] += piece
    return lines


def _lines(name: list[str], placements: list[Placement], shape: str, shard: str) -> list[str]:
    size = _size(placements)
    sizes = size_text(size), size_text(sum(COPIES.values()) * size)
    return [COLUMNS.format(name[0], len(placements), shape, shard, *sizes), *name[1:]]


def _shape(placement: Placement, mesh: AnyMesh) -> str:
    def dimension(size: int, axes: tuple[str, ...]) -> str:
        misfit = "!" if size % meshes.ways(mesh, axes) else ""
        divisor = "+".join(splitting_axes(axes, mesh))
        return f"{size}/{divisor}{misfit}" if divisor else str(size)

    return " x ".join(map(dimension, placement.shape, placement.axes))


def _sizes(mesh: AnyMesh) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def _wrap(line: str, indent: str = "") -> str:
    return textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
