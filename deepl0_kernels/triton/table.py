"""The decision table: which tile, how many warps and pipeline stages, by operator, size and device.

Nothing is tuned on first use. Every entry is compiled ahead of time for every device class it
serves by the tests; docs/gpu.md lists what that costs in registers and shared memory.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Config(NamedTuple):
    """Tile of a program: rows of the batch, columns (units), depth of a product's step."""

    rows: int
    columns: int
    depth: int = 0
    warps: int = 4
    stages: int = 1


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

# Matrix units without tf32: they multiply float32 as it is.
WITHOUT_TF32 = ("gfx950",)

_ANY = 1 << 62
# Kernels whose programs own whole rows (columns: all of them), by the mode of their products
# (product.py). As many rows as the registers hold, since each tile of rows reads S from L2 once.
_WHOLE_ROWS = {
    "tf32": (
        (256, Config(64, 0, 16, 8, 2)),
        (512, Config(32, 0, 16, 8, 2)),
        (_ANY, Config(16, 0, 16, 8, 1)),
    ),
    "half": (
        (128, Config(64, 0, 16, 8, 2)),
        (512, Config(32, 0, 16, 8, 2)),
        (_ANY, Config(16, 0, 16, 8, 1)),
    ),
    # Float32 multiply-adds take their operands through registers: no room to prefetch long rows.
    "ieee": (
        (256, Config(64, 0, 8, 8, 2)),
        (512, Config(32, 0, 16, 8, 1)),
        (_ANY, Config(16, 0, 16, 8, 1)),
    ),
}

# Kernel -> (largest p, entry), in order of p; the last entry serves every p beyond.
TABLE: dict[str, tuple[tuple[int, Config], ...]] = {
    "threshold": ((64, Config(32, 64)), (_ANY, Config(4, 512))),
    "threshold_backward": ((64, Config(32, 64)), (_ANY, Config(16, 128))),
    "threshold_stage": ((_ANY, Config(64, 64, 32, 4, 2)),),
    "encode_l0_backward": ((_ANY, Config(64, 64, 32, 4, 2)),),
}


def whole_rows(mode: str, p: int) -> Config:
    """The entry of the kernels whose programs own whole rows of length ``p``."""
    mode = "half" if mode == "tf32x2" else mode
    return next(entry for largest, entry in _WHOLE_ROWS[mode] if p <= largest)


def config(kernel: str, p: int) -> Config:
    """The entry of ``kernel`` for rows of length ``p``."""
    return next(entry for largest, entry in TABLE[kernel] if p <= largest)


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
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in SHARED_BYTES else "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    known = [c for c in SHARED_BYTES if c.startswith("sm") and int(c[2:]) <= 10 * major + minor]
    return max(known, key=lambda c: int(c[2:]), default="sm80")
