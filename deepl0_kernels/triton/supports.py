"""What the backward of the M-sparse encoder does on the supports of its codes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._matrices import by_columns
from . import unit_lists
from .launch import ceil_div, launch, power_of_two
from .table import config


@triton.jit
def product_on_support_kernel(
    du_ptr, index_ptr, s_ptr, below_ptr, out_ptr, m, s_row, s_column,
    BELOW: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """out[row, a] = sum_c du[row, c] S[index[row, c], below[row, a]]."""
    first = tl.program_id(0).to(tl.int64) * m
    a = tl.program_id(1) * BELOW + tl.arange(0, BELOW)
    below = tl.load(below_ptr + first + a, mask=a < m, other=0)
    acc = tl.zeros((BELOW, ENTRIES), tl.float32)
    for begin in range(0, m, ENTRIES):
        c = begin + tl.arange(0, ENTRIES)
        index = tl.load(index_ptr + first + c, mask=c < m, other=0)
        du = tl.load(du_ptr + first + c, mask=c < m, other=0.0)
        s = tl.load(
            s_ptr + index[None, :] * s_row + below[:, None] * s_column,
            mask=(a < m)[:, None] & (c < m)[None, :], other=0.0,
        )  # fmt: skip
        acc += du[None, :] * s.to(tl.float32)
    tl.store(out_ptr + first + a, tl.sum(acc, axis=1), mask=a < m)


def product_on_support(du: Tensor, index: Tensor, S: Tensor, below: Tensor, out: Tensor) -> None:
    """out[b, a] = (S' du_b)[below[b, a]] for the sparse du, at ``index``; all [B, m]."""
    batch, m = du.shape
    c = config("product_on_support", m)
    rows, columns = (min(size, power_of_two(m)) for size in (c.rows, c.columns))
    launch(
        product_on_support_kernel, (batch, ceil_div(m, rows)),
        du, index, S, below, out, m, *S.stride(), config=c, BELOW=rows, ENTRIES=columns,
    )  # fmt: skip


def gradient_of_steps(S: Tensor, at: Tensor, du: Tensor, z: Tensor) -> Tensor:
    """dS, in the layout of S: for every step, du of the stage above times z of the one below."""
    steps, _, m = z.shape
    p = S.shape[-1]
    transposed = by_columns(S)
    above, below = (at[1:], du[1:]), (at[:-1], z)
    (unit, coefficient), (index, value) = (below, above) if transposed else (above, below)
    if S.dim() == 3:  # the units of one step after those of another
        unit = unit + p * torch.arange(steps, device=unit.device)[:, None, None]
    out = torch.zeros(S.numel() // p, p, dtype=torch.float32, device=S.device)
    lists = unit_lists.group(unit.reshape(-1, m), coefficient, out.shape[0])
    unit_lists.outer(lists, index.reshape(-1, m), value.reshape(-1, m), out)
    out = out.view(S.shape).to(S.dtype)
    return out.transpose(-2, -1) if transposed else out
