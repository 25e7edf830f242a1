"""What a compiled program computes and sends between devices, read from its text.

The text names each collective once, however often the loop around it runs, and a TPU's compiler
prints one that it spreads over several fusions once in each; so loops are followed with their trip
counts, and the pieces of one chain are counted as one.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CONTROL = ("while", "conditional", "call")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
CALLED = re.compile(
    r"(?:calls|body|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")

# The groups of devices that exchange, in the forms that there are: {{0,1},{2,3}}; [2,2]<=[4]; and
# mesh['a'=2,'b'=4], device_ids=([8]) {'a','b':(2)2}, along axes or the middle of one cut in three.
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
PAIRS = re.compile(r"source_target_pairs=\{([{}\d,]+)\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program.

    count: how often it runs in one call. bytes: of its arrays on one device, before or after,
    whichever is more. shapes: of these arrays, as the text has them ("bf16[1,96,24,128]").
    operation: the traced operation that it serves. devices: a group that exchanges, by place in the
    mesh; () where the text lists none, which means all. overlaps: whether the program goes on while
    it runs.
    """

    kind: str
    count: int
    bytes: int
    shapes: tuple[str, ...]
    operation: str
    devices: tuple[int, ...] = ()
    overlaps: bool = False


class Instruction(NamedTuple):
    """One instruction of a TPU's program to which its compiler gives cycles.

    count: how often it runs in one call. cycles: of all these runs. operation: the traced operation
    that it serves.
    """

    opcode: str
    count: int
    cycles: int
    operation: str


class _Line(NamedTuple):
    """One instruction as the text has it; `rest` is all behind the opcode's bracket."""

    name: str
    type: str
    opcode: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """Lists the collectives of the program whose `as_text()` this is."""
    computations, entry = _parse(text)
    by_key: dict[str, Collective] = {}
    for number, (name, times) in enumerate(_visits(computations, entry, 1)):
        for line in computations[name]:
            kind = line.opcode.removesuffix("-start")
            if kind in KINDS and len(_first_group(line.rest)) != 1:
                if name.startswith("all-reduce-scatter"):  # how a TPU's compiler writes one
                    kind = "reduce-scatter"
                chain = re.search(r'chain_id="(\d+)"', line.rest)
                key = f"chain {chain[1]}" if chain else f"{number} {line.name}"
                earlier = by_key[key].count if key in by_key else 0
                by_key[key] = _collective(
                    line,
                    computations[name],
                    kind=kind,
                    count=max(times, earlier),
                    overlaps=bool(chain) or line.opcode.endswith("-start"),
                )
    return list(by_key.values())


def instructions(text: str) -> list[Instruction]:
    """Lists what a chip computes, one thing after the other, in the program of this `as_text()`.

    Of the branches of a condition it computes the costliest. What has no cycles is left out:
    collectives, copies in the background, and kernels (`tpu_custom_call`).
    """
    computations, entry = _parse(text)
    return [
        Instruction(
            opcode=line.opcode,
            count=times,
            cycles=times * cycles,
            operation=_operation(line),
        )
        for name, times in _visits(computations, entry, 1, inside_fusions=False)
        for line in computations[name]
        if (cycles := _cycles(line))
    ]


def _parse(text: str) -> tuple[dict[str, list[_Line]], str]:
    """Returns the lines by computation, and the name of the one that the program starts with."""
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := INSTRUCTION.match(line):
            current.append(_Line(*match.groups()))
    return computations, entry


def _visits(
    computations: dict, name: str, times: int, inside_fusions: bool = True
) -> Iterator[tuple[str, int]]:
    """Yields (computation, how often it runs) from each place that calls it.

    inside_fusions: whether to follow what is no control flow too, and all branches of a condition.
    """
    yield name, times
    for line in computations[name]:
        if not inside_fusions and line.opcode not in CONTROL:
            continue
        trips = _trips(computations, line) if line.opcode == "while" else 1
        callees = _callees(computations, line)
        if line.opcode == "conditional" and not inside_fusions:
            callees = [max(callees, key=functools.partial(_total_cycles, computations))]
        for callee in callees:
            yield from _visits(computations, callee, times * trips, inside_fusions)


def _callees(computations: dict, line: _Line) -> list[str]:
    names = (re.findall(r"[\w.\-]+", called) for called in CALLED.findall(line.rest))
    return [name for name in itertools.chain(*names) if name in computations]


def _cycles(line: _Line) -> int:
    """Returns the cycles that the compiler gives one run of an instruction, 0 if none."""
    cycles = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
    return int(cycles[1]) if cycles else 0


def _total_cycles(computations: dict, name: str) -> int:
    visits = _visits(computations, name, 1, inside_fusions=False)
    return sum(times * _cycles(line) for visit, times in visits for line in computations[visit])


def _trips(computations: dict, loop: _Line) -> int:
    """Returns how often a loop's body runs: what its counter, from 0, is compared with."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    inside = computations[condition[1]] if condition else []
    constants = [i for i in inside if i.opcode == "constant" and i.type.startswith("s32[]")]
    return int(constants[0].rest.split(")")[0]) if len(constants) == 1 else 1


def _collective(
    line: _Line, computation: list[_Line], *, kind: str, count: int, overlaps: bool
) -> Collective:
    types = {other.name: other.type for other in computation}
    operands = re.findall(r"%([\w.\-]+)", line.rest.split(")")[0])
    before = ARRAY.findall(" ".join(types.get(name, "") for name in operands))
    after = ARRAY.findall(line.type)
    if line.opcode.endswith("-start"):  # its result holds operands, results and handles
        after = [array for array in after if array != ("u32", "")]
        after = max(after[: len(after) // 2], after[len(after) // 2 :], key=_bytes)
    larger = max(before, after, key=_bytes)
    return Collective(
        kind=kind,
        count=count,
        bytes=_bytes(larger),
        shapes=tuple(f"{dtype}[{sizes}]" for dtype, sizes in larger),
        operation=_operation(line),
        devices=_first_group(line.rest),
        overlaps=overlaps,
    )


def _operation(line: _Line) -> str:
    name = re.search(r'op_name="([^"]*)"', line.rest)
    return name[1] if name else ""


def _first_group(rest: str) -> tuple[int, ...]:
    """Returns the first group of devices that exchange, or one device that sends to itself."""
    if explicit := LISTED.search(rest):
        return tuple(_integers(explicit[1]))
    if match := PAIRS.search(rest):
        pairs = [tuple(_integers(pair)) for pair in re.findall(r"\{([\d,]+)\}", match[1])]
        return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0][:1])
    if mesh := MESH.search(rest):
        sizes, ids, axes = mesh.groups()
        return _group_along(sizes, ids, axes)
    if iota := IOTA.search(rest):
        groups, shape, order = iota.groups()
        return tuple(_numbers(shape, order).reshape(_integers(groups))[0].tolist())
    return ()


def _group_along(sizes: str, ids: str | None, axes: str) -> tuple[int, ...]:
    """Returns the first group along some axes of a mesh, which may be parts of its axes.

    sizes: 'a'=2,'b'=8. ids: of its devices, in order or as [8,2]T(1,0). axes: 'a','b':(2)4, where
    the 8 are cut into 2 x 4 x 1 and the group lies along the 4.
    """
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    places = {name: [0] for name in shape}
    for name, outer, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        size = int(part or shape[name])
        step = shape[name] // (size * int(outer or 1))
        places[name] = [start + step * i for start in places[name] for i in range(size)]
    numbers = np.arange(math.prod(shape.values()))
    if iota := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids or ""):
        numbers = _numbers(iota[1], iota[2])
    elif ids:
        numbers = np.array(_integers(ids))
    return tuple(numbers.reshape(*shape.values())[np.ix_(*places.values())].ravel().tolist())


def _numbers(shape: str, order: str | None) -> np.ndarray:
    """Returns 0, 1, 2, ... in an array of `shape` ("2,4") with its axes in `order` ("1,0")."""
    sizes = _integers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_integers(order)) if order else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _bytes(arrays: list[tuple[str, str]]) -> int:
    bits = (math.prod(_integers(sizes)) * _bits(dtype) for dtype, sizes in arrays)
    return sum(bits) // 8


def _bits(dtype: str) -> int:
    """Returns the bits of one element: bf16 has 16, f8e4m3fn 8, pred 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
