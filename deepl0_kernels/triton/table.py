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
    "top_m": _ROW,
    "keep_top_m": _ROW,
    # depth: indices read per step.
    "unpool": ((64, Config(32, 64, 32)), (512, Config(4, 512, 32)), (_ANY, Config(1, 4096, 512))),
    "apply_mask": ((64, Config(32, 64)), (512, Config(4, 512)), (_ANY, Config(1, 2048))),
    "radix_count": ((_ANY, Config(1, 4096, warps=8)),),
    "radix_emit": ((_ANY, Config(1, 2048, warps=8)),),
}

# A batch of fewer long rows is split further, so that twice the multiprocessors of a large GPU
# (132 on H100, 148 on B200) have work.
FEW_PROGRAMS = 288


def config(kernel: str, p: int) -> Config:
    """The entry of ``kernel`` for rows of length ``p``."""
    return next(entry for largest, entry in TABLE[kernel] if p <= largest)


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
