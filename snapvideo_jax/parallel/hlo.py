"""What a compiled program sends between devices, read from its text.

The text names each collective once, however often the loop around it runs, and a TPU's compiler
prints one that it spreads over several fusions once in each; so loops are followed with their trip
counts, and the pieces of one chain are counted as one.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
ALONE = re.compile(r"replica_groups=(\{(\{\d+\},?)+\}|\[\d+,1\]<=)")  # groups of one device
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective of a program.

    count: how often it runs in one call. shapes: of the arrays, as the text has them
    ("bf16[1,96,24,128]"); bytes: of all of them on one device, before or after, whichever is more.
    operation: the traced operation that it serves.
    """

    kind: str
    count: int
    bytes: int
    shapes: tuple[str, ...]
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
            if kind in KINDS and not ALONE.search(instruction.rest):
                chain = re.search(r'chain_id="(\d+)"', instruction.rest)
                key = f"chain {chain[1]}" if chain else f"{number} {instruction.name}"
                seen = found[key].count if key in found else 0
                found[key] = _collective(kind, max(times, seen), instruction, computations[name])
    return list(found.values())


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


def _visits(computations: dict, name: str, times: int) -> Iterator[tuple[str, int]]:
    """(computation, how often it runs), from each place that calls it."""
    yield name, times
    for instruction in computations[name]:
        trips = _trips(computations, instruction) if instruction.opcode == "while" else 1
        for called in CALLED.findall(instruction.rest):
            for inner in re.findall(r"[\w.\-]+", called):
                if inner in computations:
                    yield from _visits(computations, inner, times * trips)


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
    if instruction.opcode.endswith("-start"):  # its result holds operands and results
        after = max(after[: len(after) // 2], after[len(after) // 2 :], key=_bytes)
    most = max(before, after, key=_bytes)
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    shapes = tuple(f"{dtype}[{sizes}]" for dtype, sizes in most)
    return Collective(kind, count, _bytes(most), shapes, name[1] if name else "")


def _bytes(arrays: list[tuple[str, str]]) -> int:
    return (
        sum(math.prod(map(int, filter(None, sizes.split(",")))) * _bits(d) for d, sizes in arrays)
        // 8
    )


def _bits(dtype: str) -> int:
    """Of one element: bf16 has 16, f8e4m3fn 8, pred 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
