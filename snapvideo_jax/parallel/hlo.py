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
ALONE = re.compile(r"replica_groups=(\{(\{\d+\},?)+\}|\[\d+,1\]<=)")  # groups of one device
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


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
            if kind in KINDS and not ALONE.search(instruction.rest):
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
    if instruction.opcode.endswith("-start"):  # its result holds operands and results
        after = max(after[: len(after) // 2], after[len(after) // 2 :], key=_bytes)
    most = max(before, after, key=_bytes)
    shapes = tuple(f"{dtype}[{sizes}]" for dtype, sizes in most)
    operation, devices = _operation(instruction), _first_group(instruction.rest)
    return Collective(kind, count, _bytes(most), shapes, operation, devices)


def _operation(instruction: _Instruction) -> str:
    name = re.search(r'op_name="([^"]*)"', instruction.rest)
    return name[1] if name else ""


def _first_group(rest: str) -> tuple[int, ...]:
    """The first group of devices that exchange: replica_groups={{0,1},{2,3}} or [2,2]<=[4]."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", rest):
        return tuple(map(int, listed[1].split(",")))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota is None:
        return ()
    groups, shape, order = (
        [int(n) for n in part.split(",")] if part else [] for part in iota.groups()
    )
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return tuple(map(int, numbers.transpose(order or None).reshape(groups)[0]))


def _bytes(arrays: list[tuple[str, str]]) -> int:
    return (
        sum(math.prod(map(int, filter(None, sizes.split(",")))) * _bits(d) for d, sizes in arrays)
        // 8
    )


def _bits(dtype: str) -> int:
    """Of one element: bf16 has 16, f8e4m3fn 8, pred 8."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
