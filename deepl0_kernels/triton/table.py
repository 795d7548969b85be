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
WITHOUT_TF32 = ("gfx942", "gfx950")

# Kernel -> (largest p, entry), in order of p; the last entry serves every p beyond.
_ANY = 1 << 62
TABLE: dict[str, tuple[tuple[int, Config], ...]] = {
    "threshold": ((64, Config(32, 64)), (_ANY, Config(4, 512))),
    "threshold_backward": ((64, Config(32, 64)), (_ANY, Config(16, 128))),
    # By n: the columns of D and of its gradient. "combine": depth is the length of a chunk.
    "decode": ((64, Config(32, 64)), (128, Config(16, 128)), (_ANY, Config(8, 256))),
    "decode_backward": ((64, Config(32, 64)), (_ANY, Config(16, 128))),
    "combine": ((64, Config(16, 64, 256)), (_ANY, Config(8, 256, 256))),
    # By m.
    "encode_large_backward": ((32, Config(32, 32, warps=2)), (_ANY, Config(64, 64))),
    "outer": ((_ANY, Config(4, 128, 4096)),),
    # By n, the depth of the product, for each of its modes (product.py).
    "encode_large_half": ((_ANY, Config(64, 128, 64, 8, 3)),),
    "encode_large_tf32": ((_ANY, Config(64, 128, 32, 8, 3)),),
    "encode_large_ieee": ((_ANY, Config(64, 128, 16, 8, 2)),),
    # By the length of a row of candidates: as many rows as fill the tile.
    "encode_large_select": ((_ANY, Config(1, 4096, warps=8)),),
}


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
