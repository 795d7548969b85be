"""The factored M-sparse encoder, z <- top_m(z + step W (x - D z) + b), out of the kernels of a GPU
floor: each floor brings its own, what is made of them stands here.

Forward: the residual x - D z is a gather-sum of atoms, the rest one stage over W, to whose product
z is added at its m entries before the selection. Of the products [B, p] one block of rows is held
at a time. Backward, with du_k on the support of stage k, r_k its residual and q_k = W' du_k:
dr_k = step_k q_k, dx = sum dr_k, dW = sum step_k du_k r_k', db = sum du_k, dstep_k = <q_k, r_k>,
dD = -sum dr_k z_{k-1}', du_{k-1} = du_k - D' dr_k on the support of z_{k-1}: gather-sums, dots with
atoms and sums by unit; flops O(K B m n), memory beyond the gradients O(K B (n + m)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._matrices import by_columns


class Kernels(NamedTuple):
    """Of a floor. Codes are float32 values and ascending int64 indices [B, m]; results float32."""

    elements: int  # of a product [B, p] that may be held
    halves: bool  # whether ``product`` takes half types as they are
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x [B, n], W, b -> x W' + b
    top_m: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]  # u, m, positive
    atoms: Callable[[Tensor], Tensor]  # D [n, p] -> D', contiguous
    gather_sum: Callable[[Tensor, Tensor, Tensor], Tensor]  # values, indices, rows [p, n] -> [B, n]
    dots: Callable[[Tensor, Tensor, Tensor], Tensor]  # indices, rows [p, n], x [B, n] -> [B, m]
    group: Callable[[Tensor, int], Any]  # indices, p -> their lists by unit
    combine: Callable[[Any, Tensor, Tensor], Tensor]  # lists, c [B, m], x [B, n] -> [p, n]


def encode_top_m(
    kernels: Kernels,
    x: Tensor,
    W: Tensor,
    D: Tensor,
    bias: Tensor | None,
    step: Tensor | None,
    m: Sequence[int],
    positive: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.encode_top_m_factored``. 2 K B (n p + m n) flops."""
    dtype, p, stages = x.dtype, W.shape[0], len(m)
    wide = W.float() if stages > 1 or step is not None or not kernels.halves else W
    atoms = kernels.atoms(D) if stages > 1 else D
    codes: list[list[tuple[Tensor, Tensor]]] = [[] for _ in m]
    for rows in x.split(max(1, kernels.elements // max(1, p))):
        code = None
        for k, entries in enumerate(m):
            r = rows if k == 0 and kernels.halves else rows.float()
            if code is not None:
                r = r - kernels.gather_sum(*code, atoms)
            if step is not None:
                r = r * step[k]
            u = kernels.product(r, W if r.dtype == dtype else wide, bias)
            if code is not None:  # the indices of a row are distinct: no two entries meet
                values, indices = code
                u.scatter_(1, indices, u.gather(1, indices) + values)
            code = kernels.top_m(u, entries, positive)
            codes[k].append(code)
    *before, (values, indices) = (
        tuple(torch.cat(part) for part in zip(*code, strict=True)) for code in codes
    )
    if save and before:
        saved = tuple(torch.cat([t.flatten() for t in part]) for part in zip(*before, strict=True))
    else:
        saved = values.new_empty(0), indices.new_empty(0)
    return values.to(dtype), indices, saved[0], saved[1]


def encode_top_m_backward(
    kernels: Kernels,
    grad_values: Tensor,
    values: Tensor | None,
    indices: Tensor,
    saved_values: Tensor,
    saved_indices: Tensor,
    x: Tensor,
    W: Tensor,
    D: Tensor,
    step: Tensor | None,
    m: Sequence[int],
    mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in x, W, D, the bias and the steps, those in the mask."""
    need_x, need_W, need_D, need_bias, need_step = (mask & bit for bit in (1, 2, 4, 8, 16))
    (batch, n), p, last = x.shape, W.shape[0], len(m) - 1
    z, at = _stages(saved_values, batch, m), [*_stages(saved_indices, batch, m), indices]
    lowest = 0 if mask & 27 else 1  # stage whose du is for something
    wide: dict[str, Any] = dict(dtype=torch.float32, device=x.device)
    grad_x = torch.zeros((batch, n) if need_x else 0, **wide)
    grad_W = torch.zeros((p, n) if need_W else 0, **wide)
    grad_atoms = torch.zeros((p, n) if need_D else 0, **wide)
    grad_bias = torch.zeros((p, 1) if need_bias else 0, **wide)
    grad_step = torch.zeros(last + 1 if need_step else 0, **wide)
    atoms = kernels.atoms(D) if last > 0 and batch > 0 and mask else D
    ones = torch.ones((batch, 1) if need_bias else 0, **wide)
    du = grad_values.float()
    if values is not None:
        du = du.masked_fill(values == 0, 0.0)
    lists = None  # of at[k]
    for k in range(last, lowest - 1, -1) if batch > 0 else ():
        if lists is None and (need_W or need_bias):
            lists = kernels.group(at[k], p)
        if need_W or need_step:
            r = x.float()
            if k > 0:
                r = r - kernels.gather_sum(z[k - 1], at[k - 1], atoms)
        if need_W:
            grad_W += kernels.combine(lists, du, r if step is None else r * step[k])
        if need_bias:
            grad_bias += kernels.combine(lists, du, ones)
        if k == 0 and not (need_x or need_step):
            break
        q = kernels.gather_sum(du, at[k], W)
        if need_step:
            grad_step[k] = (q * r).sum(dtype=torch.float64)
        dr = q if step is None else q * step[k]
        if need_x:
            grad_x += dr
        if k == 0:
            break
        lists = None
        if need_D:
            lists = kernels.group(at[k - 1], p)
            grad_atoms -= kernels.combine(lists, z[k - 1], dr)
        if k > lowest:
            du = _entries_at(at[k - 1], du, at[k]) - kernels.dots(at[k - 1], atoms, dr)
            if values is not None:
                du = du.masked_fill(z[k - 1] == 0, 0.0)
    grad_D = x.new_empty(0)
    if need_D:
        grad_D = grad_atoms.to(x.dtype).t()
        grad_D = grad_D if by_columns(D) else grad_D.contiguous()
    low = (t.to(x.dtype) for t in (grad_x, grad_W, grad_bias.flatten()))
    grad_x, grad_W, grad_bias = low
    return grad_x, grad_W, grad_D, grad_bias, grad_step


def _stages(saved: Tensor, batch: int, m: Sequence[int]) -> list[Tensor]:
    """What is saved of every stage but the last, [B, m[k]] each."""
    sizes = [batch * entries for entries in m[:-1]]
    return [
        part.view(batch, entries)
        for part, entries in zip(saved.contiguous().split(sizes), m[:-1], strict=True)
    ]


def _entries_at(wanted: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """The entries of the code (values, indices) at the units ``wanted`` [B, m], else 0."""
    if indices.shape[1] == 0:
        return values.new_zeros(wanted.shape)
    place = torch.searchsorted(indices.contiguous(), wanted).clamp_(max=indices.shape[1] - 1)
    return torch.where(indices.gather(1, place) == wanted, values.gather(1, place), 0.0)
