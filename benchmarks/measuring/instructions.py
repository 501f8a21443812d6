"""What a compiled program starts and moves, counted in its text as XLA prints it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id",
    "copy-done", "async-done",
}  # fmt: skip
"""Instructions of XLA that start nothing."""
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
"""Of one number."""


class Count(NamedTuple):
    """What a part of a program does on the card."""

    kernels: float = 0.0
    """Kernels and copies started."""
    bytes: float = 0.0
    """Read and written by them, as if each read its operands as a whole."""

    def plus(self, other: Count, times: float = 1.0) -> Count:
        """This and the other so many times."""
        return Count(self.kernels + times * other.kernels, self.bytes + times * other.bytes)


class Instruction(NamedTuple):
    """One line of a compiled program."""

    name: str
    shape: str
    operation: str
    operands: list[str]
    """Names."""
    rest: str
    """All that follows the operands."""


def instructions(text: str) -> dict[str, list[Instruction]]:
    """The computations of a compiled program as XLA prints it, by name; that of the program itself also as ENTRY."""
    found: dict[str, list[Instruction]] = {}
    inside: list[Instruction] | None = None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*-> .* \{$", line):
            inside = found[head[2]] = []
            if head[1]:
                found["ENTRY"] = inside
        elif line.startswith("}"):
            inside = None
        elif inside is not None and (parts := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)):
            shape, rest = _shape_of(parts[2])
            operation, rest = rest.split("(", 1)
            operands, rest = rest.split(")", 1)
            inside.append(Instruction(parts[1], shape, operation, re.findall(r"%([\w.\-]+)", operands), rest))
    return found


def _shape_of(text: str) -> tuple[str, str]:
    """The shape that a line begins with, which may be a tuple, and the rest."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and not depth:
            return text[:place], text[place + 1 :]
    raise ValueError(f"no instruction: {text}")


def size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple: f32[10,256]{1,0}."""
    arrays = re.findall(r"\b(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/|\{.*?\}", "", shape))
    return sum(BYTES.get(kind, 4) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in arrays)


def count(program: dict[str, list[Instruction]], name: str = "ENTRY", trips: float = 1.0) -> Count:
    """What a computation does. A loop of a number of passes that is not known when it is compiled has `trips`."""
    total, shapes = Count(), {}
    for one in program[name]:
        shapes[one.name] = one.shape
        if one.operation == "while":
            known = re.search(r"known_trip_count\D*(\d+)", one.rest)
            body = count(program, _named(one.rest, "body"), trips)
            total = total.plus(body, int(known[1]) if known else trips)
        elif one.operation == "conditional":
            branches = [count(program, branch, trips) for branch in _branches(one.rest)]
            total = total.plus(max(branches))
        elif one.operation in ("call", "async-start"):
            total = total.plus(count(program, _named(one.rest, "to_apply|calls"), trips))
        elif one.operation not in FREE:
            moved = size(one.shape) + sum(size(shapes[operand]) for operand in one.operands)
            total = total.plus(Count(1, moved))
    return total


def _named(rest: str, attribute: str) -> str:
    return re.search(rf"(?:{attribute})=%?([\w.\-]+)", rest)[1]


def _branches(rest: str) -> list[str]:
    if several := re.search(r"branch_computations=\{([^}]*)\}", rest):
        return [name.strip().lstrip("%") for name in several[1].split(",")]
    return [_named(rest, "true_computation"), _named(rest, "false_computation")]
