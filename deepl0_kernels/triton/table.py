"""The decision table: which tile, how many warps and pipeline stages, by operator, size and device.

Nothing is tuned on first use. Every entry is compiled ahead of time for every device class it
serves by the tests; docs/gpu-kernels.md lists what that costs in registers and shared memory.
``deepl0 tune`` measures instead (tuned.py).
"""

from __future__ import annotations

import functools

import torch
import triton

from . import tuned
from .tuned import Config

# Device class -> bytes of shared memory a block may use.
SHARED_BYTES = {
    "sm80": 163 << 10,
    "sm86": 99 << 10,
    "sm90": 227 << 10,
    "sm100": 227 << 10,
    "sm120": 99 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}

# Of the compiler.
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))

# Matrix units without tf32: they multiply float32 as it is.
WITHOUT_TF32 = ("gfx950",)

# Kernel -> (largest p, entry), in order of p; the last entry serves every p beyond.
_ANY = 1 << 62
# A row in registers: 8 or 16 entries per thread; up to 512 in one warp, whose reductions are
# shuffles. The last entry is the segment of a longer row.
_ROW = (
    (16, Config(32, 16, warps=1)),
    (32, Config(16, 32, warps=1)),
    (64, Config(8, 64, warps=1)),
    (128, Config(4, 128, warps=1)),
    (256, Config(2, 256, warps=1)),
    (512, Config(1, 512, warps=1)),
    (1024, Config(1, 1024, warps=2)),
    (2048, Config(1, 2048, warps=8)),
    (4096, Config(1, 4096, warps=8)),
    (_ANY, Config(1, 8192, warps=16)),
)
TABLE: dict[str, tuple[tuple[int, Config], ...]] = {
    "threshold": ((64, Config(32, 64)), (_ANY, Config(4, 512))),
    "threshold_backward": ((64, Config(32, 64)), (_ANY, Config(16, 128))),
    # By n: the columns of D and of its gradient. "combine": depth is the length of a chunk.
    "decode": ((64, Config(32, 64)), (128, Config(16, 128)), (_ANY, Config(8, 256))),
    "decode_backward": ((64, Config(32, 64)), (_ANY, Config(16, 128))),
    "combine": ((64, Config(8, 64, 256)), (_ANY, Config(8, 256, 256))),
    # By m.
    "encode_sparse_backward": ((32, Config(32, 32, warps=2)), (_ANY, Config(64, 64))),
    "outer": ((_ANY, Config(4, 128, 4096)),),
    "top_m": _ROW,
    "keep_top_m": _ROW,
    # depth: indices read per step.
    "unpool": ((64, Config(32, 64, 32)), (512, Config(4, 512, 32)), (_ANY, Config(1, 4096, 512))),
    "apply_mask": ((64, Config(32, 64)), (512, Config(4, 512)), (_ANY, Config(1, 2048))),
    "batch_top_m": ((64, Config(32, 64)), (512, Config(4, 512)), (_ANY, Config(1, 2048))),
    "radix_count": ((_ANY, Config(1, 4096, warps=8)),),
    "radix_emit": ((_ANY, Config(1, 2048, warps=8)),),
    "threshold_stage": ((_ANY, Config(64, 64, 32, 4, 2)),),
    "encode_l0_backward": ((_ANY, Config(64, 64, 32, 8, 2)),),
    # Programs own whole rows (columns: all of them); by the mode of their products (product.py). As
    # many rows as the registers hold, since each tile of rows reads S from L2 once.
    "whole_rows_tf32": (
        (256, Config(32, 0, 16, 8, 2)),
        (512, Config(32, 0, 8, 8, 1)),
        (_ANY, Config(16, 0, 8, 8, 1)),
    ),
    "whole_rows_half": (
        (512, Config(32, 0, 16, 8, 2)),
        (_ANY, Config(16, 0, 16, 8, 1)),
    ),
    # Float32 multiply-adds take their operands through registers: no room to prefetch.
    "whole_rows_ieee": (
        (512, Config(32, 0, 8, 8, 1)),
        (_ANY, Config(16, 0, 8, 8, 1)),
    ),
    # By n, the depth of the product, for each of its modes (product.py).
    "encode_sparse_half": ((_ANY, Config(32, 128, 32, 4, 3)),),  # of the candidates, on an H200
    "encode_sparse_tf32": ((_ANY, Config(64, 128, 16, 8, 3)),),
    "encode_sparse_ieee": ((_ANY, Config(64, 128, 16, 8, 1)),),
    # By the length of a row of candidates: as many rows as fill the tile.
    "encode_sparse_select": ((_ANY, Config(1, 4096, warps=8)),),
}

# The longest rows that a program owns whole; no more fit in registers and shared memory.
FUSED_P = 1024

# A batch of fewer long rows is split further, so that twice the multiprocessors of a large GPU
# (132 on H100, 148 on B200) have work.
FEW_PROGRAMS = 288


def config(kernel: str, p: int) -> Config:
    """The configuration of ``kernel`` for rows of length ``p``: what ``deepl0 tune`` measured for
    the device and dtype being served, else the table's entry."""
    if forced := tuned.forced(kernel):
        return forced
    measured = tuned.lookup(kernel, p)
    return measured if measured and measured in choices(kernel, p) else entry(kernel, p)


def whole_rows(mode: str, p: int) -> Config:
    """The configuration of the kernels whose programs own whole rows of length ``p``."""
    return config(f"whole_rows_{'half' if mode == 'tf32x2' else mode}", p)


def entry(kernel: str, p: int) -> Config:
    return next(c for largest, c in TABLE[kernel] if p <= largest)


def choices(kernel: str, p: int) -> tuple[Config, ...]:
    """What ``deepl0 tune`` may choose from: the entry, and it with half and twice the rows and
    warps, and other depths of the pipeline where there is one. All give correct results."""
    c = entry(kernel, p)
    return tuple(
        Config(rows, c.columns, c.depth, warps, stages)
        for rows in dict.fromkeys((c.rows, max(1, c.rows // 2), 2 * c.rows))
        for warps in dict.fromkeys((c.warps, max(1, c.warps // 2), min(16, 2 * c.warps)))
        for stages in dict.fromkeys((c.stages, *((2, 3) if c.stages > 1 else ())))
    )


@functools.cache
def resident_programs(device: torch.device) -> int:
    """Programs of a kernel that loops over its tiles: as many as the device is likely to hold."""
    if device.type != "cuda":
        return 264
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def device_class(device: torch.device) -> str:
    """The class of the table that ``device`` belongs to; what is not a GPU counts as sm80."""
    if device.type != "cuda":
        return "sm80"
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return _supported(architecture if architecture in SHARED_BYTES else None, name)
    major, minor = torch.cuda.get_device_capability(device)
    known = [c for c in SHARED_BYTES if c.startswith("sm") and int(c[2:]) <= 10 * major + minor]
    return _supported(max(known, key=lambda c: int(c[2:]), default=None), name)


def _supported(found: str | None, device: str) -> str:
    if found is None:
        raise RuntimeError(
            f"the Triton kernels serve {', '.join(SHARED_BYTES)} and what is newer, not {device}; "
            "dk.use_backend('reference') serves every device"
        )
    return found
