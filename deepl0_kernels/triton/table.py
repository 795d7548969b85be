"""The decision table: which tile and how many warps, by operator, size and device.

Nothing is tuned on first use. Every entry is compiled ahead of time for every device class it
serves by the tests; docs/gpu-kernels.md lists what that costs in registers and shared memory.
``deepl0 tune`` measures instead (tuned.py).
"""

from __future__ import annotations

import functools

import torch

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
    "product_on_support": ((32, Config(32, 32, warps=2)), (_ANY, Config(64, 64))),
    "outer": ((_ANY, Config(4, 128, 4096)),),
    "top_m": _ROW,
    "gather_top_m": _ROW,
    "keep_top_m": _ROW,
    # depth: indices read per step.
    "unpool": ((64, Config(32, 64, 32)), (512, Config(4, 512, 32)), (_ANY, Config(1, 4096, 512))),
    "apply_mask": ((64, Config(32, 64)), (512, Config(4, 512)), (_ANY, Config(1, 2048))),
    "batch_top_m": ((64, Config(32, 64)), (512, Config(4, 512)), (_ANY, Config(1, 2048))),
    "radix_count": ((_ANY, Config(1, 4096, warps=8)),),
    "radix_emit": ((_ANY, Config(1, 2048, warps=8)),),
}

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


def entry(kernel: str, p: int) -> Config:
    return next(c for largest, c in TABLE[kernel] if p <= largest)


def choices(kernel: str, p: int) -> tuple[Config, ...]:
    """What ``deepl0 tune`` may choose from: the entry, and it with half and twice the rows and
    warps. All give correct results."""
    c = entry(kernel, p)
    return tuple(
        Config(rows, c.columns, c.depth, warps)
        for rows in dict.fromkeys((c.rows, max(1, c.rows // 2), 2 * c.rows))
        for warps in dict.fromkeys((c.warps, max(1, c.warps // 2), min(16, 2 * c.warps)))
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
