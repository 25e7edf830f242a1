"""What a compiled program does and sends between devices, read from its text.

The text names each collective once, however often the loop around it runs, and a TPU's compiler
prints one that it spreads over several fusions once in each; so loops are followed with their trip
counts, and the pieces of one chain are counted as one.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CONTROL = ("while", "conditional", "call")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")

# The groups of devices that exchange, in the forms that there are: {{0,1},{2,3}}; [2,2]<=[4]; and
# mesh['a'=2,'b'=4], device_ids=([8]) {'a','b':(2)2}, along axes or the middle of one cut in three.
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
PAIRS = re.compile(r"source_target_pairs=\{([{}\d,]+)\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program.

    count: how often it runs in one call. shapes: of the arrays, as the text has them
    ("bf16[1,96,24,128]"); bytes: of all of them on one device, before or after, whichever is more.
    operation: the traced operation that it serves. devices: numbers, in the order of the mesh, of
    devices that exchange with each other; () where the text lists none, which means all. apart:
    whether the program goes on while it runs.
    """

    kind: str
    count: int
    bytes: int
    shapes: tuple[str, ...]
    operation: str
    devices: tuple[int, ...] = ()
    apart: bool = False


class Work(NamedTuple):
    """One instruction of a TPU's program to which its compiler gives cycles.

    count: how often it runs in one call; cycles: of all these runs. operation: as of a Collective.
    """

    opcode: str
    count: int
    cycles: int
    operation: str


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str


def collectives(text: str) -> list[Collective]:
    """All collectives of the program whose `as_text()` this is."""
    computations, entry = _parse(text)
    found: dict[str, Collective] = {}
    for number, (name, times) in enumerate(_visits(computations, entry, 1)):
        for instruction in computations[name]:
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and len(_first_group(instruction.rest)) != 1:
                if name.startswith("all-reduce-scatter"):  # how a TPU's compiler writes one
                    kind = "reduce-scatter"
                chain = re.search(r'chain_id="(\d+)"', instruction.rest)
                key = f"chain {chain[1]}" if chain else f"{number} {instruction.name}"
                seen = found[key].count if key in found else 0
                apart = bool(chain) or instruction.opcode.endswith("-start")
                sent = _collective(kind, max(times, seen), instruction, computations[name])
                found[key] = sent._replace(apart=apart)
    return list(found.values())


def works(text: str) -> list[Work]:
    """What the cores do, one thing after the other, in the program whose `as_text()` this is.

    Without what has no cycles: collectives, copies that run apart, and kernels (`tpu_custom_call`).
    """
    computations, entry = _parse(text)
    found = []
    for name, times in _visits(computations, entry, 1, fused=False):
        for instruction in computations[name]:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            if cycles:
                operation = _operation(instruction)
                work = Work(instruction.opcode, times, times * int(cycles[1]), operation)
                found.append(work)
    return found


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions by computation, and the name of the one that the program starts with."""
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := INSTRUCTION.match(line):
            current.append(_Instruction(*match.groups()))
    return computations, entry


def _visits(
    computations: dict, name: str, times: int, fused: bool = True
) -> Iterator[tuple[str, int]]:
    """(computation, how often it runs), from each place that calls it.

    fused: also those whose instructions are parts of one.
    """
    yield name, times
    for instruction in computations[name]:
        if not fused and instruction.opcode not in CONTROL:
            continue
        trips = _trips(computations, instruction) if instruction.opcode == "while" else 1
        for called in CALLED.findall(instruction.rest):
            for inner in re.findall(r"[\w.\-]+", called):
                if inner in computations:
                    yield from _visits(computations, inner, times * trips, fused)


def _trips(computations: dict, loop: _Instruction) -> int:
    """How often a loop's body runs: what its counter, which starts at 0, is compared with."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    inside = computations[condition[1]] if condition else []
    constants = [i for i in inside if i.opcode == "constant" and i.type.startswith("s32[]")]
    return int(constants[0].rest.split(")")[0]) if len(constants) == 1 else 1


def _collective(
    kind: str, count: int, instruction: _Instruction, around: list[_Instruction]
) -> Collective:
    types = {other.name: other.type for other in around}
    operands = re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])
    before = ARRAY.findall(" ".join(types.get(name, "") for name in operands))
    after = ARRAY.findall(instruction.type)
    if instruction.opcode.endswith("-start"):  # its result holds operands, results and handles
        after = [array for array in after if array != ("u32", "")]
        after = max(after[: len(after) // 2], after[len(after) // 2 :], key=_bytes)
    most = max(before, after, key=_bytes)
    shapes = tuple(f"{dtype}[{sizes}]" for dtype, sizes in most)
    operation, devices = _operation(instruction), _first_group(instruction.rest)
    return Collective(kind, count, _bytes(most), shapes, operation, devices)


def _operation(instruction: _Instruction) -> str:
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    return name[1] if name else ""


def _first_group(rest: str) -> tuple[int, ...]:
    """The first group of devices that exchange, or of one that sends to itself."""
    if listed := LISTED.search(rest):
        return tuple(_integers(listed[1]))
    if pairs := PAIRS.search(rest):
        both = [tuple(_integers(pair)) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
        return next((pair for pair in both if pair[0] != pair[1]), both[0][:1])
    if mesh := MESH.search(rest):
        return _along(*mesh.groups())
    if iota := IOTA.search(rest):
        groups, shape, order = iota.groups()
        return tuple(_numbers(shape, order).reshape(_integers(groups))[0].tolist())
    return ()


def _along(sizes: str, numbers: str | None, axes: str) -> tuple[int, ...]:
    """The first of the groups along some axes of a mesh, which may be parts of its axes.

    sizes: 'a'=2,'b'=8. numbers: of its devices, in order or as [8,2]T(1,0). axes: 'a','b':(2)4 for
    what is left when the 8 are cut into 2 x 4 x 1 and the 4 taken.
    """
    shape = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    places = {name: [0] for name in shape}
    for name, outer, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        size = int(part or shape[name])
        step = shape[name] // (size * int(outer or 1))
        places[name] = [start + step * i for start in places[name] for i in range(size)]
    ids = np.arange(math.prod(shape.values()))
    if ordered := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", numbers or ""):
        ids = _numbers(*ordered.groups())
    elif numbers:
        ids = np.array(_integers(numbers))
    return tuple(ids.reshape(*shape.values())[np.ix_(*places.values())].ravel().tolist())


def _numbers(shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... laid out as `shape`, with the axes in another order: "2,4" and "1,0"."""
    sizes = _integers(shape)
    laid = np.arange(math.prod(sizes)).reshape(sizes)
    return laid.transpose(_integers(order)) if order else laid


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _bytes(arrays: list[tuple[str, str]]) -> int:
    return (
        sum(math.prod(map(int, filter(None, sizes.split(",")))) * _bits(d) for d, sizes in arrays)
        // 8
    )


def _bits(dtype: str) -> int:
    """Of one element: bf16 has 16, f8e4m3fn 8, pred 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
