"""Kernels with the faults that the checks of compiled kernels must find."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def offset_kernel(x_ptr, n, WIDE: tl.constexpr):
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    tl.store(x_ptr + row * n, 1.0)


@triton.jit
def index_kernel(x_ptr, index_ptr, n):
    tl.store(x_ptr + tl.load(index_ptr) * n, 1.0)


@triton.jit
def atomic_kernel(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


@triton.jit
def spill_kernel(x_ptr):
    """A tile of 128 KB in one block of 4 warps, which lives across a reduction."""
    at = tl.arange(0, 65536)
    a = tl.load(x_ptr + at)
    tl.store(x_ptr + at, a * tl.sum(a, axis=0))
