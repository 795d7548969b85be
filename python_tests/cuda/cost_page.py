"""The predictions in docs/gpu-cuda.md: the CUDA kernels beside the Triton ones, by the cost model,
and beside them what the committed record has measured.

``python -m python_tests.cuda.cost_page --write`` writes them; a test compares.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch

import deepl0_kernels as dk
from bench import records
from bench.conftest import OURS
from deepl0_kernels.cuda import library
from deepl0_kernels.triton import table
from python_tests.triton import cost_page as triton_page
from python_tests.triton.cost import Cost, Device, predict, torch_cost
from python_tests.triton.cost_page import Case, Step
from python_tests.triton.recording import Capturable

from .budget import DOCUMENT
from .cost import FORMULAS, H20, H100, ISSUE
from .emulator import Emulator
from .recording import Launch, recording

# The mode of the record that no launch overhead hides.
GRAPH = ", graph"

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
    """Seconds that a call should take by either floor."""

    case: Case
    cuda: float
    triton: float
    bytes: float  # from DRAM, by the CUDA kernels


def resident(a: Launch, usage: dict[tuple[str, str], tuple[int, int]]) -> int:
    """Blocks of a launch that a multiprocessor of sm_90 holds, by registers, shared memory and
    threads; but no more than 32 warps of them, which keep it busy."""
    registers, static = usage.get((a.kernel, a.variant), (32, 0))
    by_registers = 65536 // (a.threads * math.ceil(registers / 8) * 8)
    by_shared = (228 << 10) // (a.shared + static + 1024)
    return max(1, min(by_registers, by_shared, 1024 // a.threads, 32))


def documented() -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and static shared memory by kernel and template arguments."""
    rows = re.findall(
        r"^\| (\w+_kernel) \| (.*?) \| (\d+) \| (\d+) \|$", DOCUMENT.read_text(), re.M
    )
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
    launches = len(triton_page.steps_of(case, device)) - 1
    return predict(cost, int(programs), slots, device).seconds + launches * device.launch


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
        yield from (
            page.select(b, p, dtype) for b, p in ((65536, 512), (4096, 131072), (8, 131072))
        )
        for p in (128, 512, 1024, 4096, 8192):
            yield page.keep(4096, p, dtype)
        for p in (128, 256, 512, 1024, 2048, 4096, 8192, 16384):
            yield page.encoder(4096, p, 2, dtype)
        yield from (page.encoder(65536, p, 2, dtype) for p in (128, 256, 512))
        yield page.encoder(4096, 16384, 1, dtype)
        for p in (128, 256, 512, 1024, 2048, 4096, 8192, 16384):
            yield page.encoder(4096, p, 2, dtype, True)
        for p in (512, 16384, 131072):
            yield page.decode(4096, p, dtype)
            yield backward_of_decode(4096, p, dtype)


def both(case: Case, emulator: Emulator, device: Device = H100) -> Both:
    steps = steps_of(case, device, emulator)
    by_cuda, by_other = seconds(steps), by_triton(case, device)
    moved = sum(s.prediction.dram for s in steps)
    return Both(case, by_cuda, by_other, moved)


def _us(seconds: float) -> str:
    us = 1e6 * seconds
    return f"{us:.0f}" if us >= 100 else f"{us:.3g}"


def measured() -> dict[tuple[str, str, str], float]:
    """(operator, shape, "cuda" or "triton") -> median microseconds in a CUDA graph."""
    names = {OURS: "cuda", f"{OURS}, triton": "triton"}
    return {
        (row.operator.removesuffix(GRAPH), row.shape, names[row.provider]): row.p50
        for row in records.read(records.FOLDER / "gpu-h200.csv")
        if row.operator.endswith(GRAPH) and row.provider in names
    }


def shape_in_record(case: Case) -> str:
    dtype = str(case.dtype).removeprefix("torch.")
    if case.operator.startswith("decode"):
        return f"{case.shape} {dtype}"
    batch_and_p, *stages = case.shape.split(" K=")
    return " ".join([batch_and_p, f"m={triton_page.M}", *(f"K={k}" for k in stages), dtype])


def table_of(found: list[Both]) -> str:
    lines = [
        "| operator | shape | dtype | CUDA: predicted, us | measured, us |"
        " Triton: predicted, us | measured, us |",
        "|---|---|---|---|---|---|---|",
    ]
    record = measured()
    for b in found:
        key = b.case.operator, shape_in_record(b.case)
        cuda, triton = (
            f"{record[(*key, floor)]:.4g}" if (*key, floor) in record else ""
            for floor in ("cuda", "triton")
        )
        lines.append(
            f"| {b.case.operator} | {b.case.shape} | {str(b.case.dtype).removeprefix('torch.')} | "
            f"{_us(b.cuda)} | {cuda} | {_us(b.triton)} | {triton} |"
        )
    return "\n".join(lines) + "\n"


def selection(batch: int, p: int, m: int) -> Case:
    """top_m of float32 rows, for published figures."""

    def call():
        return dk.top_m(torch.empty(batch, p, device="meta"), m)

    return Case("top_m", f"B={batch} p={p}", torch.float32, call, 4.0 * batch * p, 0.0)


class Published(NamedTuple):
    """What others report of a selection: seconds, or a ratio to torch.topk alone."""

    case: Case
    device: Device
    claim: str
    topk: float | None  # seconds of torch.topk


PUBLISHED = (
    Published(selection(8192, 128000, 100), H20, "torch.topk on an H20: 19.6 ms", 19.6e-3),
    Published(
        selection(64, 131072, 256), H100,
        "FlashInfer's pull request 3009, device not named: torch.topk 178 us, FlashInfer 44.8 us,"
        " 29.4 us with clusters (not deterministic)", 178.22e-6,
    ),
    Published(
        selection(65536, 512, 32), H100,
        "RTop-K (ICLR 2025), rows to some thousands: to 7.29 times torch.topk on average without"
        " early stopping", None,
    ),
    Published(
        selection(100, 1 << 20, 100), H100,
        "RadiK (2025): to 4.8 times the prior art on batches, 2.5 times on one row", None,
    ),
)  # fmt: skip


def published(emulator: Emulator) -> str:
    lines = [
        "| selection, float32 | published | predicted here | torch.topk over it |",
        "|---|---|---|---|",
    ]
    for claim in PUBLISHED:
        ours = seconds(steps_of(claim.case, claim.device, emulator))
        ratio = f"{claim.topk / ours:.1f}" if claim.topk else "not to be told"
        lines.append(
            f"| {claim.case.shape}, {claim.device.name} | {claim.claim} | "
            f"{_us(ours)} us | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def atomic(emulator: Emulator) -> str:
    """The sum of dS both ways, where neither is a dense product."""
    lines = ["| B, p = 1024, m = 32 | sorted, us | atomic, us |", "|---|---|---|"]
    rule = library.sorting_pays
    for batch in (64, 256, 1024, 4096, 16384):
        cells = []
        for allowed in (False, True):
            library.allow_atomics(allowed)
            library.sorting_pays = lambda *sizes: True
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the tests' emulator asks for determinism
                    whole = steps_of(training(batch, 1024), H100, emulator)
            finally:
                library.allow_atomics(False)
                library.sorting_pays = rule
            cells.append(_us(sum_of_outer(whole)))
        lines.append(f"| {batch} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def training(batch: int, p: int) -> Case:
    return triton_page.encoder(batch, p, 2, torch.float32, True)


def sum_of_outer(steps: list[Step]) -> float:
    """Seconds of dS: the sort before it, or the memset, and the sum itself."""
    names = [s.name for s in steps]
    at = next(i for i, name in enumerate(names) if name.startswith("outer"))
    first = at
    while names[first - 1].startswith("sort_") or names[first - 1] == "memset":
        first -= 1
    return seconds(steps[first : at + 1])


def page(emulator: Emulator) -> str:
    parts = {
        "choice": table_of([both(case, emulator) for case in cases()]),
        "published": published(emulator),
        "atomic": atomic(emulator),
    }
    text = DOCUMENT.read_text()
    for name, body in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = head + begin + body + end + rest.split(end, 1)[1]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace {DOCUMENT.name}")
    text = page(Emulator())
    if parser.parse_args().write:
        DOCUMENT.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
