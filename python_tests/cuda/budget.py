"""Registers and shared memory of every CUDA kernel, by ptxas.

Run as a module it writes the table of docs/gpu-cuda.md.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from deepl0_kernels._files import fill

from . import build
from .emulator import base_name

DOCUMENT = build.ROOT / "docs" / "gpu-cuda.md"


class Usage(NamedTuple):
    kernel: str
    variant: str
    registers: int
    shared: int
    stack: int
    spilled: int


def variant(mangled: str) -> str:
    """Template arguments, readable: `F32, 16` or `uint32, shared, dense`."""
    match = re.search(r"kernelI(.*?)EEv", mangled)
    if match is None:
        return ""
    names = {"j": "4 bytes", "t": "2 bytes"}
    out, rest = [], match.group(1) + "E"
    types: list[str] = []  # the third of what substitutions stand for, and those after it
    while rest and rest != "E":
        if found := re.match(r"(?:NS0_|N6deepl04cuda)\d(F32|F16|BF16)E", rest):
            types.append(found.group(1))
            out.append(types[-1])
        elif found := re.match(r"S([2-9])_", rest):
            out.append(types[int(found.group(1)) - 2])
        elif found := re.match(r"Li(\d+)E", rest):
            out.append(found.group(1))
        elif found := re.match(r"Lb([01])E", rest):
            out.append("yes" if found.group(1) == "1" else "no")
        elif found := re.match(r"[jt]", rest):
            out.append(names[found.group(0)])
        else:
            return match.group(1)
        rest = rest[found.end() :]
    return ", ".join(out)


def usage(source: str, arch: str) -> list[Usage]:
    """Registers and memory of every kernel of a file."""
    found = []
    for part in build.assembled(source, arch)[1].split("Compiling entry function '")[1:]:

        def number(pattern: str, part: str = part) -> int:
            match = re.search(rf"(\d+) {pattern}", part)
            return int(match.group(1)) if match else 0

        name = part.split("'")[0]
        spilled = number("bytes spill stores") + number("bytes spill loads")
        stack, shared = number("bytes stack frame"), number("bytes smem")
        registers = re.search(r"Used (\d+) registers", part)
        assert registers is not None, part
        found.append(
            Usage(base_name(name), variant(name), int(registers[1]), shared, stack, spilled)
        )
    return sorted(found)


def all_usage(arch: str = build.ARCH) -> list[Usage]:
    return [u for source in build.SOURCES for u in usage(source, arch)]


def table(found: list[Usage]) -> str:
    tools = build.toolkit()
    assert tools is not None
    lines = [
        f"By nvcc {tools.release()} for sm_{build.ARCH}:",
        "",
        "| kernel | template | registers | static shared bytes |",
        "|---|---|---|---|",
    ]
    lines += [f"| {u.kernel} | {u.variant} | {u.registers} | {u.shared} |" for u in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fill(DOCUMENT, {"budget": table(all_usage())})
