"""Backward of the M-sparse encoder for long codes: M-sparse throughout.

With g the gradient of the last values, du_K = g on the support of stage K; going down,
dS_k += du_{k+1} z_k' and du_k = S_k' du_{k+1} on the support of z_k; W x enters every stage, so
dW = sum_b du_b x_b' and dx = du W with du the sum over the stages.

Every du has m entries a row. Flops and gathers per row: du m^2 a step (a sector of 32 bytes each),
dS m^2, dW and dx K m n. dW and dS are summed unit by unit (unit_lists.py): deterministic. Memory
beyond the gradients: O(K B m), and a row of n or p per whole chunk of a unit's entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops.registration import gradient_of_matrix
from . import unit_lists
from .decode import gather_sum
from .encode_dense import encode_top_m_backward as dense_backward
from .encode_dense import sparse_pays
from .launch import ceil_div, launch, power_of_two
from .table import config


@triton.jit
def encode_large_bwd_kernel(
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
    c = config("encode_large_backward", m)
    rows, columns = (min(size, power_of_two(m)) for size in (c.rows, c.columns))
    launch(
        encode_large_bwd_kernel, (batch, ceil_div(m, rows)),
        du, index, S, below, out, m, *S.stride(), config=c, BELOW=rows, ENTRIES=columns,
    )  # fmt: skip


def grad_of_steps(S: Tensor, at: Tensor, du: Tensor, z: Tensor) -> Tensor:
    """dS, in the layout of S: for every step, du of the stage above times z of the one below."""
    steps, _, m = z.shape
    grad = gradient_of_matrix(S)
    p = S.shape[-1]
    transposed = not grad.is_contiguous()
    above, below = (at[1:], du[1:]), (at[:-1], z)
    (unit, coefficient), (index, value) = (below, above) if transposed else (above, below)
    if S.dim() == 3:  # the units of one step after those of another
        unit = unit + p * torch.arange(steps, device=unit.device)[:, None, None]
    out = torch.zeros(grad.numel() // p, p, dtype=torch.float32, device=S.device)
    lists = unit_lists.group(unit.reshape(-1, m), coefficient, out.shape[0])
    unit_lists.outer(lists, index.reshape(-1, m), value.reshape(-1, m), out)
    out = out.view(S.shape).to(S.dtype)
    return out.transpose(-2, -1) if transposed else out


def encode_top_m_backward(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x (empty unless ``need_x``), W and S (empty if None), in the dtype of x."""
    args = (grad_values, indices, saved_values, saved_indices, x, W, S, need_x)
    (steps, batch, m), (p, n) = saved_values.shape, W.shape
    if not sparse_pays(p, m) or batch * m == 0:
        return dense_backward(*args)
    at = torch.cat((saved_indices, indices[None]))
    du = torch.empty(at.shape, dtype=torch.float32, device=x.device)
    du[steps] = grad_values
    grad_S = x.new_empty(0)
    if S is not None and steps > 0:
        for k in range(steps, 0, -1):
            step = S[k - 1] if S.dim() == 3 else S
            product_on_support(du[k], at[k], step, at[k - 1], du[k - 1])
        grad_S = grad_of_steps(S, at, du, saved_values.contiguous())
    elif S is not None:
        grad_S = gradient_of_matrix(S).zero_()
    grad_W = W.new_empty((p, n))
    unit_lists.combine(unit_lists.group(at.view(-1, m), du, p, rows=batch), x, grad_W)
    grad_x = x.new_empty((batch, n) if need_x else 0)
    if need_x:  # the entries of all stages in one row
        values, units = (t.transpose(0, 1).reshape(batch, -1).contiguous() for t in (du, at))
        gather_sum(values, units, W.t(), grad_x)
    return grad_x, grad_W, grad_S
