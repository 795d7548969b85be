"""32-bit integers of a kernel that pass 2^31 for the arguments of a launch.

The kernel's Triton IR is interpreted with intervals in place of numbers: arguments have the values
of the launch, program ids the range of its grid, loop variables the range of their loop, and loaded
integers are taken for indices, from 0 to the largest argument. Other values are unknown, and so is
what is computed from them. A sum or product of 32 bits that leaves the range of int32 is reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

Interval = tuple[int, int] | None

_LIMIT = 1 << 31
_LINE = re.compile(r"\s*%(\S+) = (\S+)(.*)")
_FOR = re.compile(r"scf\.for %(\S+) = %(\S+) to %(\S+) step")
_SAME = (
    "tt.splat", "tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans", "ttg.convert_layout",
    "arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast",
)  # fmt: skip
_PAIRS = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.shli": lambda a, b: a << min(max(b, 0), 63),
    "arith.divsi": lambda a, b: abs(a) // max(1, abs(b)) * (1 if (a < 0) == (b < 0) else -1),
    "arith.minsi": min,
    "arith.maxsi": max,
}


def overflows(ttir: str, arguments: Mapping[str, int], grid: tuple[int, ...]) -> tuple[str, ...]:
    """Lines of ``ttir`` with a 32-bit overflow."""
    index = (0, max(arguments.values(), default=1))
    known: dict[str, Interval] = {name: (value, value) for name, value in arguments.items()}
    known |= {f"program {axis}": (0, n - 1) for axis, n in zip("xyz", grid, strict=False)}
    found = []
    for line in ttir.splitlines():
        line = line.split(" loc(")[0]
        if loop := _FOR.search(line):
            name, low, high = loop.groups()
            low, high = known.get(low), known.get(high)
            known[name] = (low[0], max(low[0], high[1] - 1)) if low and high else None
            continue
        match = _LINE.match(line)
        if not match:
            continue
        name, operation, rest = match.groups()
        value = _evaluate(operation, rest, known, index)
        bits = re.search(r"i(\d+)>?$", rest.split("->")[-1].strip())
        if value and bits and bits[1] == "32" and not (-_LIMIT <= value[0] <= value[1] < _LIMIT):
            found.append(line.strip())
            value = None
        known[name.split(":")[0]] = value
    return tuple(found)


def _evaluate(operation: str, rest: str, known: Mapping[str, Interval], index) -> Interval:
    if operation == "arith.constant":
        number = re.search(r"(?:dense<)?(-?\d+)>? : (?:tensor<.*x)?i\d+", rest)
        return (int(number[1]), int(number[1])) if number else None
    if operation == "tt.get_program_id":
        return known.get(f"program {rest.split()[0]}", (0, 0))
    if operation == "tt.make_range":
        end, start = re.search(r"end = (\d+) : i32, start = (\d+)", rest).groups()
        return int(start), int(end) - 1
    if operation == "tt.load":
        return index if re.search(r"ptr<i(8|16|32|64)>", rest) else None
    operands = [known.get(name) for name in re.findall(r"%([\w$.-]+)", rest.split(" : ")[0])]
    if operation in _SAME:
        return operands[0]
    if operation == "arith.remsi" and operands[1] and operands[0] and operands[0][0] >= 0:
        return 0, min(operands[0][1], max(operands[1][1] - 1, 0))
    if operation == "arith.select" and operands[1] and operands[2]:
        return min(operands[1][0], operands[2][0]), max(operands[1][1], operands[2][1])
    if operation in _PAIRS and all(operands):
        values = [_PAIRS[operation](a, b) for a, b in product(*operands)]
        return min(values), max(values)
    return None
