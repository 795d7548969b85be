"""Matrix products inside the kernels: A B' accumulated in float32, and in which precision.

========  ==========================  =====================================================
mode      operands                    product
========  ==========================  =====================================================
half      both float16 or bfloat16    tensor cores; every product exact
ieee      any, cast to float32        float32 multiply-adds (matrix cores on AMD)
tf32      both float32                tensor cores, operands rounded to 11 bits
tf32x2    A float32, B half           tensor cores: A = high + low of 11 bits each, B is exact in
                                      tf32, so an entry of A is off by at most 2^-22 of itself
========  ==========================  =====================================================

tf32x2 is for the codes z and the gradients du, which stay float32 between the stages while the
matrices are half: two tf32 products are four times as fast as float32 multiply-adds would be, and
rounding z to the half type would move the supports.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table
from .tuned import Config

# Triton's interpreter has no bfloat16 arithmetic: it computes every product in float32.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A step of a product in float32 is at least as deep as this: before 3.8 ``tl.dot`` takes no less.
_LEAST_DEPTH = 8 if table.VERSION >= (3, 8) else 16


def precision(a: torch.dtype, b: Tensor) -> str:
    """The mode of a product of A of dtype ``a`` with the matrix ``b``.

    float32 is multiplied as float32 unless ``torch.set_float32_matmul_precision`` allows tf32.
    """
    tf32 = not _INTERPRETED and table.device_class(b.device) not in table.WITHOUT_TF32
    if b.dtype != torch.float32:
        if a == b.dtype and not _INTERPRETED:
            return "half"
        return "tf32x2" if tf32 else "ieee"
    # Unlike get_float32_matmul_precision, this may be read whichever way it was set.
    return "tf32" if tf32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def by_pytorch(matrix: Tensor) -> bool:
    """Whether products with ``matrix`` are better left to PyTorch: in float32, on NVIDIA. There the
    multiply-adds of ``tl.dot`` take two to four times as long (measured on an H200), more than the
    passes over memory that fusing saves."""
    return (
        matrix.dtype == torch.float32
        and not _INTERPRETED
        and precision(torch.float32, matrix) == "ieee"
        and table.device_class(matrix.device).startswith("sm")
    )


def depth(c: Config, *operands: Tensor) -> int:
    """The depth of a step: a matrix unit takes no less than 16 of a half type."""
    half = any(t.element_size() < 4 for t in operands)
    return max(c.depth, 16 if half else _LEAST_DEPTH)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b."""
    if PRECISION == "half":
        acc = tl.dot(a, b, acc)
    elif PRECISION == "tf32x2":
        b = b.to(tl.float32)
        high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        high = tl.where(a == a, high, a)
        low = tl.where(tl.abs(high) < float("inf"), a - high, 0.0)
        acc = tl.dot(low, b, acc, input_precision="tf32")
        acc = tl.dot(high, b, acc, input_precision="tf32")
    else:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    return acc


@triton.jit
def add_product(
    acc, a_ptr, a_rows, a_inside, a_step, b_ptr, b_columns, b_inside, b_step, depth,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + A B' over ``depth``, with A[r, d] at a_rows[r] + d a_step and B[c, d] at
    b_columns[c] + d b_step; rows and columns that are not inside count as zero.
    """
    steps = tl.arange(0, DEPTH)
    a_at = a_rows[:, None] + (steps * a_step)[None, :]
    b_at = b_columns[None, :] + (steps * b_step)[:, None]
    for d in range(0, depth, DEPTH):
        inside = steps < depth - d
        a = tl.load(a_ptr + a_at, mask=a_inside[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_ptr + b_at, mask=inside[:, None] & b_inside[None, :], other=0.0)
        acc = dot(a, b, acc, PRECISION)
        a_ptr += tl.cast(a_step, tl.int64) * DEPTH
        b_ptr += tl.cast(b_step, tl.int64) * DEPTH
    return acc


@triton.jit
def start(bias_ptr, columns, real, ROWS: tl.constexpr):
    """What a product [ROWS, COLUMNS] is added to: zero, or the contiguous bias in every row."""
    acc = tl.zeros((ROWS, columns.shape[0]), tl.float32)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + columns, mask=real, other=0.0).to(tl.float32)[None, :]
    return acc


def within_32_bits(t: Tensor, rows: int | None = None) -> Tensor:
    """``t`` if offsets within ``rows`` rows (all) of a matrix fit 32 bits; else, oddly, a copy."""
    extent = (t.shape[-2] if rows is None else rows, t.shape[-1])
    reach = sum(n * abs(stride) for n, stride in zip(extent, t.stride()[-2:], strict=True))
    return t if reach < 1 << 31 else t.contiguous()


def matrix_and_strides(x: Tensor, S: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
    """S and its strides (stage, row, column); with a single stage nothing is read."""
    if S is None:
        return x, (0, 0, 0)
    return S, (S.stride(0) if S.dim() == 3 else 0, S.stride(-2), S.stride(-1))
