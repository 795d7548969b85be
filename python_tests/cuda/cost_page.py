"""The predictions in docs/gpu-cuda.md: the CUDA kernels beside the Triton ones, by the cost model.

``python -m python_tests.cuda.cost_page --write`` writes them; a test compares, and holds
``deepl0_kernels.backends.choose`` to them.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch

import deepl0_kernels as dk
from python_tests.triton import cost_page as triton_page
from deepl0_kernels.triton import table
from python_tests.triton.cost import Cost, Device, predict, torch_cost
from python_tests.triton.cost_page import Case, Step
from python_tests.triton.recording import Capturable

from .budget import DOCUMENT
from .cost import FORMULAS, H20, H100, ISSUE
from .emulator import Emulator
from .recording import Launch, recording

backends = importlib.import_module("deepl0_kernels.backends")
BEGIN, END = "<!-- predictions -->\n", "<!-- end of predictions -->"

# Instructions of a warp a row that Triton's kernels take, counted like those in cost.py: (bytes of
# an element, p) -> (top_m, keep_top_m), m = min(p / 16, 32).
TRITON_SELECT = {
    (4, 128): (575, 531), (4, 256): (715, 620), (4, 512): (1241, 1040), (4, 1024): (2170, 1678),
    (4, 4096): (12248, 9840), (4, 8192): (26128, 20048),
    (2, 128): (583, 513), (2, 256): (931, 790), (2, 512): (1585, 1289), (2, 1024): (4266, 3676),
    (2, 4096): (13544, 10760), (2, 8192): (34096, 27840),
}  # fmt: skip
# Of longer rows every 32 entries, counted at p = 32768.
TRITON_LONG = {4: (120, 143), 2: (190, 213)}


class Both(NamedTuple):
    """Seconds that a call should take by either floor, and which one ``choose`` takes."""

    case: Case
    cuda: float
    triton: float
    bytes: float  # from DRAM, by the CUDA kernels
    chosen: str


def resident(a: Launch, usage: dict[tuple[str, str], tuple[int, int]]) -> int:
    """Blocks of a launch that a multiprocessor of sm_90 holds, by registers, shared memory and
    threads; but no more than 32 warps of them, which keep it busy."""
    registers, static = usage.get((a.kernel, a.variant), (32, 0))
    by_registers = 65536 // (a.threads * math.ceil(registers / 8) * 8)
    by_shared = (228 << 10) // (a.shared + static + 1024)
    return max(1, min(by_registers, by_shared, 1024 // a.threads, 32))


def documented() -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and static shared memory by kernel and template arguments."""
    rows = re.findall(r"^\| (\w+_kernel) \| (.*?) \| (\d+) \| (\d+) \|$", DOCUMENT.read_text(), re.M)
    return {(kernel, variant): (int(r), int(s)) for kernel, variant, r, s in rows}


def steps_of(case: Case, device: Device, emulator: Emulator) -> list[Step]:
    """The launches and PyTorch's operations of a call by the CUDA kernels, in order."""
    usage, steps, entries = documented(), [], 0

    def dispatch(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        flush()
        name = func.overloadpacket.__name__
        tensors = [
            t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if torch.is_tensor(t)
        ]
        # What may return its argument, and has not, is a copy.
        copies = name in ("contiguous", "to", "reshape") and out is not args[0]
        views = func.is_view or name.startswith(("empty", "new_empty", "detach", "_unsafe_view"))
        if (copies or not views) and not str(func).startswith("deepl0_"):
            cost = torch_cost("mm" if name == "matmul" else name, tensors)
            steps.append(Step(name, predict(cost, 1 << 20, 1 << 20, device)))
        return out

    def flush() -> None:
        nonlocal entries
        for a in launches:
            if a.kernel == "sort_starts_kernel":
                entries = a.entries
            if a.kernel == "outer_kernel":
                a.arguments["entries"] = entries
            slots = device.multiprocessors * resident(a, usage)
            programs = 1 << 20 if a.kernel == "memset" else a.grid
            steps.append(Step(a.kernel, predict(FORMULAS[a.kernel](a), programs, slots, device)))
        launches.clear()

    before = Capturable.__torch_dispatch__
    with recording(emulator, (device.multiprocessors, 232448)) as launches:
        Capturable.__torch_dispatch__ = dispatch
        try:
            case.call()
            flush()
        finally:
            Capturable.__torch_dispatch__ = before
    return steps


def seconds(steps: list[Step]) -> float:
    return sum(s.prediction.seconds for s in steps)


def by_triton(case: Case, device: Device) -> float:
    """Seconds by the Triton kernels; selection by the instructions that were counted."""
    kinds = ("top_m", "keep_top_m")
    if case.operator not in kinds:
        return seconds(triton_page.steps_of(case, device))
    kind = kinds.index(case.operator)
    batch, p = (int(n) for n in re.findall(r"\d+", case.shape)[:2])
    e = case.dtype.itemsize
    row = TRITON_SELECT[e, p][kind] if (e, p) in TRITON_SELECT else p / 32 * TRITON_LONG[e][kind]
    config = table.config(case.operator, p)
    programs = batch * math.ceil(p / config.columns) / config.rows
    slots = device.multiprocessors * 32 // config.warps
    cost = Cost(case.bytes, case.bytes, {"fp32": ISSUE * batch * row})
    return predict(cost, int(programs), slots, device).seconds


def backward_of_decode(batch: int, p: int, dtype: torch.dtype) -> Case:
    n, m = triton_page.N, triton_page.M

    def call():
        D = torch.empty(p, n, dtype=dtype, device="meta").t().requires_grad_()
        values = triton_page.leaf(batch, m, dtype=dtype)
        indices = torch.empty(batch, m, dtype=torch.int64, device="meta")
        return triton_page.backward(dk.decode(dk.SparseCode(values, indices, p), D), values, D)

    e = dtype.itemsize
    moved = 2 * batch * m * (e + 8.0) + e * (2.0 * p * n + 2.0 * batch * n)
    return Case("decode forward + backward", f"B={batch} p={p}", dtype, call, moved, 0.0)


def cases() -> Iterator[Case]:
    page = triton_page
    for dtype in (torch.float32, torch.bfloat16):
        for p in (128, 256, 512, 1024, 4096, 8192):
            yield page.select(4096, p, dtype)
        yield from (page.select(b, p, dtype) for b, p in ((65536, 512), (4096, 131072), (8, 131072)))
        for p in (128, 512, 1024, 4096, 8192):
            yield page.keep(4096, p, dtype)
        for p in (256, 512, 1024, 2048, 4096, 8192, 16384):
            yield page.encoder(4096, p, 2, dtype)
        yield page.encoder(4096, 16384, 1, dtype)
        for p in (256, 512, 1024, 2048, 4096, 8192, 16384):
            yield page.encoder(4096, p, 2, dtype, True)
        for p in (512, 16384, 131072):
            yield page.decode(4096, p, dtype)
            yield backward_of_decode(4096, p, dtype)


if __name__ == "__main__":
    emulator = Emulator()
    for case in cases():
        c = steps_of(case, H100, emulator)
        t = by_triton(case, H100)
        print(f"{case.operator:32} {case.shape:20} {case.dtype} cuda {seconds(c)*1e6:8.1f} ({len(c)}) triton {t*1e6:8.1f}  roof {triton_page.roof(case, H100)*1e6:8.1f}",
              max(c, key=lambda s: s.prediction.seconds).name, max(c, key=lambda s: s.prediction.seconds).prediction.bound, flush=True)
