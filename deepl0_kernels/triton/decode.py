"""x_hat = D a for a sparse code a: a gather-sum of atoms, and its derivatives.

Forward, x_hat[b, :] = sum_j values[b, j] D[:, indices[b, j]]: a program owns a tile [ROWS, COLUMNS]
of x_hat and adds an atom per row and step, in ascending j, in float32. 2 B m n flops; B m n
elements of D are read (from L2 while D fits there), B n written: bound by the bandwidth of L2.

Backward: grad_values[b, j] = <grad[b, :], D[:, indices[b, j]]>, a gather-dot with the same traffic;
grad_D[:, i] = sum of values[b, j] grad[b, :] over the entries of atom i (unit_lists.py).

Nothing here waits for the device, so an index out of range cannot raise: it is never followed, and
its row of x_hat is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .._matrices import gradient_of_matrix
from . import unit_lists
from .launch import ceil_div, launch
from .table import config


@triton.jit
def decode_fwd_kernel(
    value_ptr, index_ptr, d_ptr, out_ptr, rows, n, p, m, d_n, d_p,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    live, inside = r < rows, columns < n
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j in tl.range(0, m, loop_unroll_factor=2):
        index = tl.load(index_ptr + r * m + j, mask=live, other=0)
        value = tl.load(value_ptr + r * m + j, mask=live, other=0.0).to(tl.float32)
        exists = (index >= 0) & (index < p)
        value = tl.where(exists, value, float("nan"))
        atom = tl.load(
            d_ptr + index[:, None] * d_p + columns[None, :] * d_n,
            mask=(live & exists)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        acc += value[:, None] * atom.to(tl.float32)
    out = out_ptr + r[:, None] * n + columns[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit
def decode_bwd_kernel(
    grad_ptr, index_ptr, d_ptr, out_ptr, entries, n, p, m, d_n, d_p,
    ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    live = e < entries
    row = e // m
    index = tl.load(index_ptr + e, mask=live, other=0)
    exists = live & (index >= 0) & (index < p)
    acc = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for begin in range(0, n, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS).to(tl.int64)
        mask = exists[:, None] & (columns < n)[None, :]
        grad = tl.load(grad_ptr + row[:, None] * n + columns[None, :], mask=mask, other=0.0)
        atom = tl.load(d_ptr + index[:, None] * d_p + columns[None, :] * d_n, mask=mask, other=0.0)
        acc += grad.to(tl.float32) * atom.to(tl.float32)
    out = tl.where(exists, tl.sum(acc, axis=1), float("nan"))
    tl.store(out_ptr + e, out.to(out_ptr.dtype.element_ty), mask=live)


def with_contiguous_atoms(D: Tensor, gathers: int) -> Tensor:
    """D [n, p], or a copy with contiguous columns where that pays.

    An element of a strided column costs a sector of 32 bytes from L2 instead of its own 4, a copy
    of D 8 bytes an element: it pays from 28 n gathers = 8 n p on.
    """
    if D.stride(0) == 1 or 7 * gathers < 2 * D.shape[1]:
        return D
    return D.t().contiguous().t()


def gather_sum(values: Tensor, indices: Tensor, D: Tensor, out: Tensor) -> None:
    """out[b, :] = sum_j values[b, j] D[:, indices[b, j]]: contiguous but for D [n, p]."""
    (rows, m), (n, p) = values.shape, D.shape
    D = with_contiguous_atoms(D, rows * m)
    c = config("decode", n)
    launch(
        decode_fwd_kernel, (ceil_div(rows, c.rows), ceil_div(n, c.columns)),
        values, indices, D, out, rows, n, p, m, *D.stride(),
        config=c, ROWS=c.rows, COLUMNS=c.columns,
    )  # fmt: skip


def gather_dots(x: Tensor, indices: Tensor, D: Tensor, out: Tensor) -> None:
    """out[b, j] = <x[b, :], D[:, indices[b, j]]>: contiguous but for D [n, p]."""
    (rows, m), (n, p) = indices.shape, D.shape
    D = with_contiguous_atoms(D, rows * m)
    c = config("decode_backward", n)
    launch(
        decode_bwd_kernel, (ceil_div(rows * m, c.rows),),
        x, indices, D, out, rows * m, n, p, m, *D.stride(),
        config=c, ENTRIES=c.rows, COLUMNS=c.columns,
    )  # fmt: skip


def decode(values: Tensor, indices: Tensor, D: Tensor) -> Tensor:
    """Serves ``deepl0::decode``: values, indices [B, m], D [n, p] of any strides."""
    out = values.new_empty((values.shape[0], D.shape[0]))
    gather_sum(values.contiguous(), indices.contiguous(), D, out)
    return out


def decode_backward(
    grad: Tensor, values: Tensor, indices: Tensor, D: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::decode_backward``: gradients in the values and in D, those in the mask."""
    need_values, need_D = mask & 1, mask & 2
    grad, values, indices = grad.contiguous(), values.contiguous(), indices.contiguous()
    (rows, m), (n, p) = values.shape, D.shape
    grad_values = values.new_empty((rows, m) if need_values else 0)
    grad_D = gradient_of_matrix(D) if need_D else D.new_empty(0)
    if rows * m == 0:
        return grad_values, grad_D.zero_()
    if need_values:
        gather_dots(grad, indices, D, grad_values)
    if not need_D:
        return grad_values, grad_D
    # A row of the transpose is written at a time; a row-major D takes a copy of the result.
    by_atom = grad_D.t() if grad_D.t().is_contiguous() else grad_D.new_empty((p, n))
    unit_lists.combine(unit_lists.group(indices, values, p), grad, by_atom)
    if by_atom.data_ptr() != grad_D.data_ptr():
        grad_D.copy_(by_atom.t())
    return grad_values, grad_D
