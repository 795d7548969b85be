"""Machine code of the CUDA kernels, and how many instructions their streaming loop takes."""

from __future__ import annotations

import heapq
import os
import re
import shutil
import subprocess

from . import build
from .budget import variant
from .emulator import base_name

Listing = list[tuple[int, str]]  # address and text


def tool() -> str | None:
    """cuobjdump: the toolkit's, else the one that Triton brings."""
    if found := shutil.which("cuobjdump"):
        return found
    try:
        import triton
    except ImportError:
        return None
    return triton.knobs.nvidia.cuobjdump.path


def machine_code(source: str, arch: str) -> dict[tuple[str, str], Listing]:
    """Kernel and template -> instructions; compiled as a build does, and kept beside the PTX."""
    cubin, _ = build.assembled(source, arch)
    kept = cubin.with_suffix(".sass")
    if not kept.exists():
        done = subprocess.run([tool(), "-sass", cubin], capture_output=True, text=True, check=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(done.stdout)
        part.replace(kept)
    found = {}
    for part in kept.read_text().split("Function : ")[1:]:
        name = part.split()[0]
        lines = re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", part)
        found[base_name(name), variant(name)] = [(int(m[1], 16), m[2].strip()) for m in lines]
    return found


def following(code: Listing) -> list[list[int]]:
    """What may come after each instruction; calls and returns are not followed."""
    places = {address: i for i, (address, _) in enumerate(code)}
    found = []
    for i, (_, text) in enumerate(code):
        after = [i + 1] if i + 1 < len(code) else []
        guarded = text.startswith("@")
        jump = re.search(r"\bBRA(\.\S+)?\s+(!?U?P\d, )?.*?(0x[0-9a-f]+)", text)
        if jump:  # of a predicate, or where a warp diverges: not always
            after = [places[int(jump[3], 16)], *(after if guarded or jump[1] or jump[2] else [])]
        elif re.search(r"\bEXIT\b", text) and not guarded:
            after = []
        found.append(after)
    return found


def streaming_loop(code: Listing, loads: int = 4) -> int:
    """Instructions of the shortest way round a loop of that many loads of 16 bytes."""
    wide = {i for i, (_, text) in enumerate(code) if text.startswith("LDG.E.128")}
    after, best = following(code), None
    for start in wide:
        seen, heap = set(), [(1, 1, start)]
        while heap:
            steps, passed, i = heapq.heappop(heap)
            if best is not None and steps >= best:
                break
            for j in after[i]:
                if j == start:
                    if passed == loads:
                        best = steps if best is None else min(best, steps)
                    continue
                then = passed + (j in wide)
                if then <= loads and (j, then) not in seen:
                    seen.add((j, then))
                    heapq.heappush(heap, (steps + 1, then, j))
    assert best is not None, "no such loop"
    return best


def loop_of(code: Listing, name: str) -> list[str]:
    """The shortest run of instructions that jumps back to its start and holds one of that name."""
    places = {address: i for i, (address, _) in enumerate(code)}
    found: list[list[str]] = []
    for i, (address, text) in enumerate(code):
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump is None or int(jump[1], 16) > address:
            continue
        body = [text for _, text in code[places[int(jump[1], 16)] : i + 1]]
        if any(name in text for text in body):
            found.append(body)
    assert found, f"no loop with {name}"
    return min(found, key=len)
