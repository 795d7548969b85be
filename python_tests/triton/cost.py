"""What the kernels should take: a model of every launch, nothing measured.

A launch is recorded (recording.py), its kernel's formula below gives the bytes that must come from
DRAM, the bytes that its programs load from L2, and its operations by unit; the slowest of these
"roofs" bounds it. PyTorch's own operations between the launches count as launches that read and
write their tensors once (a sort six times). ``cost_page.py`` turns this into docs/gpu.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from deepl0_kernels.triton.launch import Launch


class Device(NamedTuple):
    """Published peaks: bytes/s, and operations/s by unit (a multiply-add is two)."""

    name: str
    device_class: str
    multiprocessors: int
    dram: float
    l2: float
    l2_size: float
    units: Mapping[str, float]
    launch: float  # seconds between dependent launches of a stream


DEVICES = (
    Device("H100 SXM", "sm90", 132, 3.35e12, 5.5e12, 50e6,
           {"half": 989e12, "tf32": 495e12, "fp32": 67e12, "int32": 16.7e12}, 3e-6),
    Device("A100 SXM", "sm80", 108, 2.0e12, 4.0e12, 40e6,
           {"half": 312e12, "tf32": 156e12, "fp32": 19.5e12, "int32": 9.7e12}, 3e-6),
)  # fmt: skip

# Share of a roof that good kernels reach: assumed, the same for all.
EFFICIENCY = {"DRAM": 0.85, "L2": 0.7, "half": 0.6, "tf32": 0.6, "fp32": 0.75, "int32": 0.75}


class Cost(NamedTuple):
    """Of one launch. ``reread`` are L2 bytes of operands that are read again and again, and
    ``resident`` how large those operands are: what L2 cannot hold comes from DRAM each time."""

    dram: float
    l2: float
    operations: Mapping[str, float]
    reread: float = 0.0
    resident: float = 0.0


class Arguments:
    """The arguments of a launch by their names; ``a.bytes("u_ptr")`` is the size of an element."""

    def __init__(self, job: Launch) -> None:
        names = [p.name for p in job.kernel.params if not p.is_constexpr]
        self._values = dict(zip(names, job.args, strict=True)) | job.constants
        self.programs = math.prod(job.grid)

    def __getattr__(self, name: str) -> Any:
        return self._values[name]

    def bytes(self, name: str) -> int:
        tensor = self._values[name]
        return 0 if tensor is None else tensor.element_size()

    def size(self, *names: str) -> float:
        """Bytes of tensors."""
        tensors = [t for name in names if (t := self._values[name]) is not None]
        return float(sum(t.numel() * t.element_size() for t in tensors))


def product(rows: float, columns: float, depth: float, mode: str) -> dict[str, float]:
    """Operations of a product in the mode of product.py."""
    flops = 2.0 * rows * columns * depth
    unit = {"half": "half", "ieee": "fp32"}.get(mode, "tf32")
    return {unit: flops * (2 if mode == "tf32x2" else 1)} if mode else {}


def plus(*costs: Mapping[str, float]) -> dict[str, float]:
    return {u: sum(c.get(u, 0.0) for c in costs) for u in {u for c in costs for u in c}}


def selection(entries: float, rows_together: int) -> dict[str, float]:
    """Compare, add and count an entry per pass; a tile passes until its slowest row is resolved
    (7 passes for one row of normal entries, 1.5 more for every doubling: counted on a CPU)."""
    return {"int32": 3.0 * entries * (7 + 1.5 * math.log2(max(1, rows_together)))}


def padded(p: int) -> int:
    return max(16, 1 << max(0, p - 1).bit_length())


def _threshold_fwd(a):
    moved = 2.0 * a.n * a.p * a.bytes("u_ptr")
    return Cost(moved, moved, {"fp32": 8.0 * a.n * a.p})


def _threshold_bwd(a):
    moved = 3.0 * a.n * a.p * a.bytes("u_ptr") + a.size("partial_ptr")
    return Cost(moved, moved, {"fp32": 12.0 * a.n * a.p})


def _top_m_fwd(a):
    entry = a.bytes("u_ptr") + (8 if a.HAS_SOURCE else 0)
    moved = a.n * a.p * entry + a.n * a.segments * a.m * (a.bytes("values_ptr") + 8.0)
    return Cost(moved, moved, selection(a.programs * a.ROWS * a.COLUMNS, a.ROWS))


def _keep_top_m_fwd(a):
    moved = a.n * a.p * (2.0 * a.bytes("u_ptr") + 1 / 8)
    return Cost(moved, moved, selection(a.programs * a.ROWS * a.COLUMNS, a.ROWS))


def _unpool_fwd(a):
    code = a.n * a.m * (a.bytes("values_ptr") + 8.0)
    dense = a.n * a.p * a.bytes("out_ptr")
    return Cost(code + dense, code * a.tiles + dense, {})


def _apply_mask_fwd(a):
    moved = a.n * a.p * (2.0 * a.bytes("u_ptr") + 1 / 8)
    return Cost(moved, moved, {"int32": 4.0 * a.n * a.p})


def _radix_count(a):
    rows = a.programs / a.segments
    moved = rows * a.p * a.bytes("u_ptr") + a.programs * 3072.0
    return Cost(moved, moved, {"int32": 10.0 * rows * a.p})


def _radix_emit(a):
    rows = a.programs / a.segments
    moved = rows * a.p * a.bytes("u_ptr") + a.size("first_out_ptr", "second_out_ptr")
    return Cost(moved, moved, {"int32": 8.0 * rows * a.p})


def _threshold_stage_fwd(a):
    element = a.bytes("w_ptr") if a.WITH_X else a.bytes("s_ptr")
    depth = (a.n if a.WITH_X else 0) + (a.p if a.WITH_Z else 0)
    outputs = ("wx_ptr", "out_ptr", "u_ptr")
    streamed = a.size("x_ptr", "z_ptr", *(o for o in outputs if o in a._values))
    weights = a.size("w_ptr", "s_ptr")
    tiles = a.programs * (a.ROWS + a.COLUMNS) * depth * element
    work = plus(
        product(a.batch, a.p, a.n if a.WITH_X else 0, a.X_PRECISION),
        product(a.batch, a.p, a.p if a.WITH_Z else 0, a.Z_PRECISION),
    )
    return Cost(streamed + weights, tiles + streamed, work, tiles, streamed + weights)


def _top_m_stage_fwd(a):
    streamed = a.size("x_ptr", "z_ptr", "out_ptr", "mask_ptr")
    weights = a.size("w_ptr", "s_ptr")
    rows, columns = a.programs * a.ROWS, padded(a.p)
    tiles = a.programs * (a.n + a.p) * a.p * a.bytes("w_ptr")
    work = plus(
        product(rows, columns, a.n + a.p, a.PRECISION), selection(rows * columns, a.ROWS)
    )  # fmt: skip
    return Cost(streamed + weights, tiles + streamed, work, tiles, weights)


def _encode(a, results: float, per_stage: Mapping[str, float]):
    """A program owns rows over all stages: weights come from L2 once per tile of rows."""
    tiles, columns, later = math.ceil(a.batch / a.ROWS), padded(a.p), a.stages - 1
    rows = tiles * a.ROWS
    weights = a.size("w_ptr") + (a.size("s_ptr") if later else 0.0)
    per_tile = a.n * a.p * a.bytes("w_ptr") + later * a.p * a.p * a.bytes("s_ptr")
    # x W' stored and read again, u stored, z stored and read, of every row and stage.
    scratch = 4.0 * rows * columns * (1 + 4 * later)
    streamed = a.size("x_ptr") + results
    work = plus(
        product(rows, columns, a.n, a.X_PRECISION),
        product(rows, columns, later * a.p, a.Z_PRECISION),
        {unit: a.stages * n * rows * columns for unit, n in per_stage.items()},
    )
    return Cost(
        streamed + weights, tiles * per_tile + scratch + streamed, work, tiles * per_tile, weights
    )


def _encode_top_m_fwd(a):
    outputs = ("values_ptr", "indices_ptr", "saved_values_ptr", "saved_indices_ptr")
    return _encode(a, a.size(*outputs), selection(1.0, a.ROWS))


def _encode_l0_fwd(a):
    return _encode(a, a.size("out_ptr", "saved_ptr"), {"fp32": 8.0})


def _encode_large_fwd(a):
    element, tile = a.bytes("w_ptr"), a.ROWS * a.COLUMNS
    tiles = math.ceil(a.rows / a.ROWS) * math.ceil(a.p / a.COLUMNS)
    loads = tiles * (a.ROWS + a.COLUMNS) * a.n * element
    gathers = tiles * tile * a.m * a.bytes("s_ptr") if a.GATHER else 0.0
    weights = a.size("w_ptr") + (a.size("s_ptr") if a.GATHER else 0.0)
    work = plus(
        product(tiles * a.ROWS, a.COLUMNS, a.n, a.PRECISION),
        {"fp32": 2.0 * tiles * tile * a.m} if a.GATHER else {},
        {"int32": 4.0 * tiles * tile},
    )
    return Cost(a.size("x_ptr") + weights, loads + gathers, work, loads + gathers, weights)


def _encode_large_select(a):
    moved = a.rows * (a.parts * a.CAPACITY * 8.0 + a.m * (a.bytes("out_value_ptr") + 8))
    return Cost(moved, moved, selection(a.rows * a.parts * a.CAPACITY, a.ROWS))


def _encode_large_bwd(a):
    rows = a.du_ptr.numel() // max(1, a.m)
    entries = float(rows) * a.m
    gathers = 32.0 * entries * a.m  # a sector an entry
    return Cost(a.size("s_ptr") + 28 * entries, gathers + 28 * entries,
                {"fp32": 2 * entries * a.m}, gathers, a.size("s_ptr"))  # fmt: skip


def _decode_fwd(a):
    gathers = float(a.rows) * a.m * a.n * a.bytes("d_ptr")
    streamed = a.size("value_ptr", "index_ptr", "out_ptr")
    return Cost(streamed + a.size("d_ptr"), streamed + gathers,
                {"fp32": 2.0 * a.rows * a.m * a.n}, gathers, a.size("d_ptr"))  # fmt: skip


def _decode_bwd(a):
    gathers = float(a.entries) * a.n * a.bytes("d_ptr")
    rows = float(a.entries) * a.n * a.bytes("grad_ptr")
    streamed = a.size("grad_ptr", "index_ptr", "out_ptr")
    return Cost(streamed + a.size("d_ptr"), streamed + gathers + rows,
                {"fp32": 2.0 * a.entries * a.n}, gathers + rows,
                a.size("d_ptr", "grad_ptr"))  # fmt: skip


def _combine(a):
    """Sums of rows of x: every entry is added in one of the two launches; counted in the second."""
    entries = a.row_ptr.numel()
    gathers = float(entries) * a.n * a.bytes("x_ptr")
    streamed = a.size("row_ptr", "coefficient_ptr", "out_ptr", "partial_ptr")
    return Cost(streamed + a.size("x_ptr"), streamed + gathers, {"fp32": 2.0 * entries * a.n},
                gathers, a.size("x_ptr"))  # fmt: skip


def _chunks(a):
    """The first launch: sums of whole chunks of one unit, few when units are used evenly."""
    moved = a.size("unit_ptr")
    return Cost(moved, moved, {})


def _outer(a):
    entries = a.row_ptr.numel()
    scattered = float(entries) * a.m * (12 + 2 * 32)
    streamed = a.size("row_ptr", "coefficient_ptr", "index_ptr", "value_ptr", "out_ptr")
    return Cost(streamed, streamed + scattered, {"fp32": 2.0 * entries * a.m}, scattered,
                a.size("out_ptr"))  # fmt: skip


def _encode_top_m_bwd(a):
    """Dense tiles of du and z: written as zeros before, supports marked, the product's operand."""
    rows, columns, later = a.programs * a.ROWS, padded(a.p), a.stages - 1
    dense = 4.0 * a.rows * a.p
    weights = a.size("s_ptr") if later else 0.0
    tiles = a.programs * later * a.p * a.p * a.bytes("s_ptr")
    codes = a.rows * a.m * ((a.bytes("grad_ptr") + 8.0) + later * 12.0)
    moved = codes + dense * (1 + later * 5)
    return Cost(codes + dense * (2 * later + 1) + weights, tiles + moved,
                product(rows, columns, later * a.p, a.PRECISION), tiles, weights)  # fmt: skip


def _encode_l0_bwd(a):
    dense = float(a.rows) * a.p
    moved = dense * (a.bytes("above_ptr") + (12.0 if a.FIRST else 20.0))
    if a.FIRST:
        return Cost(moved, moved, {"fp32": 12.0 * dense})
    tiles = a.programs * a.p * (a.ROWS * 4.0 + a.COLUMNS * a.bytes("s_ptr"))
    weights = a.size("s_ptr")
    work = plus(product(a.rows, a.p, a.p, a.PRECISION), {"fp32": 20.0 * dense})
    return Cost(moved + weights, moved + tiles, work, tiles, weights)


FORMULAS: dict[str, Callable[[Any], Cost]] = {
    "threshold_fwd_kernel": _threshold_fwd,
    "threshold_bwd_kernel": _threshold_bwd,
    "top_m_fwd_kernel": _top_m_fwd,
    "keep_top_m_fwd_kernel": _keep_top_m_fwd,
    "unpool_fwd_kernel": _unpool_fwd,
    "apply_mask_fwd_kernel": _apply_mask_fwd,
    "radix_count_kernel": _radix_count,
    "radix_emit_kernel": _radix_emit,
    "threshold_stage_fwd_kernel": _threshold_stage_fwd,
    "top_m_stage_fwd_kernel": _top_m_stage_fwd,
    "encode_top_m_fwd_kernel": _encode_top_m_fwd,
    "encode_l0_fwd_kernel": _encode_l0_fwd,
    "encode_large_fwd_kernel": _encode_large_fwd,
    "encode_large_select_kernel": _encode_large_select,
    "encode_large_bwd_kernel": _encode_large_bwd,
    "encode_top_m_bwd_kernel": _encode_top_m_bwd,
    "encode_l0_bwd_kernel": _encode_l0_bwd,
    "decode_fwd_kernel": _decode_fwd,
    "decode_bwd_kernel": _decode_bwd,
    "combine_chunks_kernel": _chunks,
    "combine_kernel": _combine,
    "outer_chunks_kernel": _chunks,
    "outer_kernel": _outer,
}


class Prediction(NamedTuple):
    """Of one launch or, added up, of a call."""

    seconds: float
    bound: str
    dram: float
    l2: float
    operations: Mapping[str, float]


def predict(cost: Cost, programs: int, slots: int, device: Device) -> Prediction:
    """The slowest roof, slowed by programs that do not fill the device, and the launch itself.

    ``slots``: programs that the device holds at once.
    """
    beyond = max(0.0, 1 - device.l2_size / cost.resident) if cost.resident else 0.0
    dram = max(cost.dram, beyond * cost.reread)
    roofs = {"DRAM": dram / device.dram, "L2": cost.l2 / device.l2}
    roofs |= {unit: n / device.units[unit] for unit, n in cost.operations.items()}
    times = {name: t / EFFICIENCY[name] for name, t in roofs.items()}
    bound = max(times, key=times.__getitem__)
    if programs >= device.multiprocessors:
        waves = programs / slots
        full = min(1.0, waves) if waves < 1 else waves / math.ceil(waves)
        full = max(full, 0.5)  # half the slots already keep most roofs busy
    else:
        full = programs / device.multiprocessors
    return Prediction(times[bound] / full + device.launch, bound, dram, cost.l2, cost.operations)


def torch_cost(name: str, tensors: list[torch.Tensor]) -> Cost:
    """One of PyTorch's own operations: its tensors once; a sort reads and writes them in passes."""
    moved = float(sum(t.numel() * t.element_size() for t in tensors))
    work = {}
    if name.rstrip("_") in ("mm", "addmm", "bmm", "baddbmm"):
        first = 1 if "add" in name else 0  # after what is added to
        a, b = [t for t in tensors if t.dim() >= 2][first : first + 2]
        unit = {torch.float32: "fp32"}.get(a.dtype, "half")
        work = {unit: 2.0 * a.numel() * b.shape[-1]}
    return Cost(moved * (6 if "sort" in name else 1), moved, work)
