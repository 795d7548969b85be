"""What the CUDA kernels should take: the model of python_tests/triton/cost.py, with formulas for
the kernels of csrc/cuda. Nothing is measured.

Selection is bound by instructions as much as by bytes, so those are counted: by executing the PTX
on rows of normal numbers. test_cost.py counts again. An instruction of a warp takes one of four
issue slots of a multiprocessor: as long as 64 float32 operations of the data sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from python_tests.triton.cost import DEVICES, Cost, Device

from .recording import Launch

H100 = DEVICES[0]
# The device of torch.topk's published figure, from its data sheet: an H100 with fewer units.
H20 = Device("H20", "sm90", 78, 4.0e12, 5.5e12, 60e6,
             {"half": 148e12, "tf32": 74e12, "fp32": 44e12, "int32": 11e12}, 3e-6)  # fmt: skip

_BYTES = {"4 bytes": 4, "2 bytes": 2, "F32": 4, "F16": 2, "BF16": 2}
ISSUE = 64.0  # float32 operations in the time of an instruction of a warp

# Instructions of a warp a row, (bytes of an element, items a lane, dense) -> count for a row of
# 32 x items normal entries and m = p / 16.
WARP_SELECT = {
    (4, 4, False): 328, (4, 8, False): 507, (4, 16, False): 899, (4, 32, False): 1832,
    (4, 4, True): 302, (4, 8, True): 449, (4, 16, True): 799, (4, 32, True): 1620,
    (2, 8, False): 482, (2, 16, False): 892, (2, 32, False): 1797,
    (2, 8, True): 424, (2, 16, True): 797, (2, 32, True): 1570,
}  # fmt: skip
# Of a block, two digits: a warp's own, and every 32 entries.
BLOCK_SELECT = {False: (600.0, 50.0), True: (560.0, 60.0)}


def _element(a: Launch) -> int:
    return _BYTES[a.variant.split(", ")[0]]


def _flags(a: Launch) -> list[str]:
    return a.variant.split(", ")[1:]


def block_select(entries: float, blocks: float, threads: int, dense: bool) -> float:
    own, every = BLOCK_SELECT[dense]
    return ISSUE * (blocks * threads / 32 * own + entries / 32 * every)


def _top_m_warp(a):
    e, (items, dense) = _element(a), _flags(a)
    out = a.rows * (a.p * e + math.ceil(a.p / 8) if dense == "yes" else a.m * (e + 8.0))
    moved = a.rows * a.p * e + out
    issued = WARP_SELECT[e, int(items), dense == "yes"]
    return Cost(moved, moved, {"fp32": ISSUE * issued * a.rows})


def _top_m_block(a):
    e, (shared, dense) = _element(a), _flags(a)
    rows = a.grid / a.segments
    entries = rows * a.p
    kept = rows * (a.p * (e + 1 / 8) if dense == "yes" else a.out_stride * (e + 8.0))
    reads = 1.0 if shared == "yes" else 4.0
    moved = reads * entries * e + kept
    return Cost(moved, moved, {"fp32": block_select(entries, a.grid, a.threads, dense == "yes")})


def _unpool_kept(a):
    e, rows = _element(a), a.grid / a.tiles
    moved = rows * (a.m * (e + 8.0) + a.p * (e + 1 / 8))
    return Cost(moved, moved, {"fp32": ISSUE * rows * a.p / 32 * 20})


def _unpool(a):
    """A sector an entry, beside the memset."""
    moved = a.entries * (_element(a) + 8.0 + 32.0)
    return Cost(moved, moved, {})


def _apply_mask(a):
    e = _element(a)
    moved = a.bytes * (8 * 2.0 * e + 1)
    return Cost(moved, moved, {})


def _gather_top_m(a):
    e = _element(a)
    rows = a.rows if a.kernel == "gather_top_m_warp_kernel" else a.grid
    streamed = rows * (4.0 * a.p + 24.0 * a.m)
    gathers, atoms = float(rows) * a.m * a.p * e, float(a.p) * a.p * e
    if a.kernel == "gather_top_m_warp_kernel":
        issued = ISSUE * rows * WARP_SELECT[4, int(_flags(a)[0]), False]
    else:
        issued = block_select(rows * a.p, a.grid, a.threads, False)
    return Cost(streamed + min(atoms, gathers), streamed + gathers,
                {"fp32": 2.0 * rows * a.m * a.p + issued}, gathers, atoms)  # fmt: skip


def _gather_rows(a):
    e = _element(a)
    gathers, atoms = float(a.rows) * a.m * a.n * e, float(a.units) * a.n * e
    streamed = a.rows * (12.0 * a.m + 4.0 * a.n)
    return Cost(streamed + min(atoms, gathers), streamed + gathers,
                {"fp32": 2.0 * a.rows * a.m * a.n}, gathers, atoms)  # fmt: skip


def _row_dots(a):
    e = _element(a)
    entries = float(a.rows) * a.m
    gathers, atoms = entries * a.n * e, float(a.units) * a.n * e
    rows = float(a.rows) * a.n * e
    moved = 12.0 * entries + rows
    return Cost(moved + min(atoms, gathers), moved + gathers + (a.tiles - 1) * rows,
                {"fp32": 2.0 * entries * a.n}, gathers, atoms)  # fmt: skip


def _transpose(a):
    moved = 2.0 * _element(a) * a.rows * a.columns
    return Cost(moved, moved, {})


def _sort_count(a):
    moved = a.entries * (8.0 if a.shift == 0 else 4.0) + a.grid * 1024.0
    return Cost(moved, moved, {"fp32": ISSUE * a.entries / 32 * 12})


def _sort_scan(a):
    moved = 8.0 * a.grid * a.tiles
    return Cost(moved, moved, {"fp32": ISSUE * a.grid * a.tiles / 32 * 20})


def _sort_scatter(a):
    read = 16.0 if a.shift == 0 else 12.0
    moved = a.entries * (read + 8.0) + a.grid * 1024.0
    return Cost(moved, moved, {"fp32": ISSUE * a.entries / 32 * 70})


def _sort_starts(a):
    moved = 4.0 * a.units * (1 + math.log2(max(2, a.entries)))
    return Cost(4.0 * a.units, moved, {})


def _combine(a):
    e = _element(a)
    gathers, rows = float(a.entries) * a.n * e, float(a.batch) * a.n * e
    ends = a.entries / 128 * 2 * a.n * 4.0
    streamed = 12.0 * a.entries + ends
    return Cost(streamed + min(rows, gathers), streamed + gathers,
                {"fp32": 2.0 * a.entries * a.n}, gathers, rows)  # fmt: skip


def _combine_edges(a):
    """Written here: the empty lists and those over several chunks; counted as if that were all."""
    moved = 4.0 * a.units * a.n
    return Cost(moved, moved, {})


def _outer(a):
    """``entries``, of all lists, is no argument of the kernel: that of the sort before it."""
    units = a.grid / a.tiles
    entries = a.arguments.get("entries", 0)
    out = 4.0 * units * a.columns * (2 if a.accumulate else 1)
    codes = 12.0 * entries * a.m
    # A step of 32 additions: 12 instructions a warp; the rows are zeroed and added up.
    issued = entries * math.ceil(a.m / 32) * 12 + units * a.columns / 32 * 4 * 6
    return Cost(out, out + codes, {"fp32": ISSUE * issued})


def _outer_atomic(a):
    """A sector an addition, read and written in L2."""
    additions = float(a.batch) * a.m * a.m
    codes = 24.0 * a.batch * a.m
    return Cost(codes, codes + 64.0 * additions, {"fp32": ISSUE * additions / 32 * 10})


def _product_on_support(a):
    e = _element(a)
    entries = float(a.rows) * a.m
    sectors, s = 32.0 * entries * a.m, float(a.units) * a.units * e
    return Cost(24.0 * entries + min(s, sectors), 24.0 * entries + sectors,
                {"fp32": 2.0 * entries * a.m}, sectors, s)  # fmt: skip


def _memset(a):
    return Cost(float(a.bytes), float(a.bytes), {})


FORMULAS: dict[str, Callable[[Launch], Cost]] = {
    "memset": _memset,
    "top_m_warp_kernel": _top_m_warp,
    "top_m_block_kernel": _top_m_block,
    "unpool_kept_kernel": _unpool_kept,
    "unpool_kernel": _unpool,
    "apply_mask_kernel": _apply_mask,
    "gather_top_m_warp_kernel": _gather_top_m,
    "gather_top_m_block_kernel": _gather_top_m,
    "gather_rows_kernel": _gather_rows,
    "row_dots_kernel": _row_dots,
    "transpose_kernel": _transpose,
    "sort_count_kernel": _sort_count,
    "sort_scan_kernel": _sort_scan,
    "sort_scatter_kernel": _sort_scatter,
    "sort_starts_kernel": _sort_starts,
    "combine_kernel": _combine,
    "combine_edges_kernel": _combine_edges,
    "outer_kernel": _outer,
    "outer_atomic_kernel": _outer_atomic,
    "product_on_support_kernel": _product_on_support,
}
