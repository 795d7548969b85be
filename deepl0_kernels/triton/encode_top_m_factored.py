"""The factored M-sparse encoder, z <- h(z + step W (x - D z) + b), without S and without [p, p].

The residual x - D z is a gather-sum of atoms, the rest one stage over W, to whose product z is
added at its m entries before the selection. Of the products [B, p] one block of rows is held.
2 K B (n p + m n) flops.

Backward, with du_k on the support of stage k, r_k its residual and q_k = W' du_k:
dr_k = step_k q_k, dx = sum dr_k, dW = sum step_k du_k r_k', db = sum du_k, dstep_k = <q_k, r_k>,
dD = -sum dr_k z_{k-1}', du_{k-1} = du_k - D' dr_k on the support of z_{k-1}: gather-sums, dots with
atoms and sums by unit; flops O(K B m n), memory beyond the gradients O(K B (n + m)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._matrices import by_columns
from . import decode, unit_lists
from .encode_top_m import blocks
from .product import first_product
from .top_m import select


def _atoms(D: Tensor) -> Tensor:
    return D.t().contiguous()


def _gather_sum(values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    out = torch.empty((len(values), rows.shape[1]), dtype=torch.float32, device=values.device)
    decode.gather_sum(values.contiguous(), indices.contiguous(), rows.t(), out)
    return out


def _dots(indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    out = torch.empty(indices.shape, dtype=torch.float32, device=x.device)
    decode.gather_dots(x.contiguous(), indices.contiguous(), rows.t(), out)
    return out


def _group(indices: Tensor, units: int) -> unit_lists.UnitLists:
    """With the entries' own numbers for coefficients."""
    order = torch.arange(indices.numel(), device=indices.device)
    return unit_lists.group(indices, order, units)


def _combine(lists: unit_lists.UnitLists, c: Tensor, x: Tensor) -> Tensor:
    out = torch.empty((len(lists.start) - 1, x.shape[1]), dtype=torch.float32, device=x.device)
    unit_lists.combine(lists._replace(coefficient=c.reshape(-1)[lists.coefficient]), x, out)
    return out


def encode_top_m_factored(
    x: Tensor, W: Tensor, D: Tensor, bias: Tensor | None, step: Tensor | None, m: Sequence[int],
    positive: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_top_m_factored``."""
    batch, p, last = x.shape[0], W.shape[0], len(m) - 1
    before = batch * sum(m[:-1])
    saved_values = x.new_empty(before, dtype=torch.float32)
    saved_indices = x.new_empty(before, dtype=torch.int64)
    codes = [
        *zip(_stages(saved_values, batch, m), _stages(saved_indices, batch, m), strict=True),
        (x.new_empty((batch, m[-1])), x.new_empty((batch, m[-1]), dtype=torch.int64)),
    ]
    atoms = _atoms(D) if last > 0 else D
    wide = W.float() if last > 0 or step is not None else W
    for rows in blocks(batch, p):
        z = None
        for k, entries in enumerate(m):
            r = x[rows] if z is None else x[rows] - _gather_sum(*z, atoms)
            if step is not None:
                r = r.float() * step[k]
            u, late = first_product(r, W if r.dtype == W.dtype else wide, bias)
            if z is not None:  # the indices of a row are distinct: no two entries meet
                values, indices = z
                u.scatter_(1, indices, u.gather(1, indices) + values)
            z = codes[k][0][rows], codes[k][1][rows]
            if entries > 0:
                select(u, positive, *z, bias=late, low=x.dtype)
    values, indices = codes[-1]
    if not save:
        saved_values, saved_indices = saved_values[:0], saved_indices[:0]
    return values, indices, saved_values, saved_indices


def encode_top_m_factored_backward(
    grad_values: Tensor, values: Tensor | None, indices: Tensor, saved_values: Tensor,
    saved_indices: Tensor, x: Tensor, W: Tensor, D: Tensor, step: Tensor | None, m: Sequence[int],
    mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_top_m_factored_backward``: gradients in x, W, D, the bias and the
    steps, those in the mask."""
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
    atoms = _atoms(D) if last > 0 and batch > 0 and mask else D
    ones = torch.ones((batch, 1) if need_bias else 0, **wide)
    du = grad_values.float()
    if values is not None:
        du = du.masked_fill(values == 0, 0.0)
    lists: Any = None  # of at[k]
    for k in range(last, lowest - 1, -1) if batch > 0 else ():
        if lists is None and (need_W or need_bias):
            lists = _group(at[k], p)
        if need_W or need_step:
            r = x.float()
            if k > 0:
                r = r - _gather_sum(z[k - 1], at[k - 1], atoms)
        if need_W:
            grad_W += _combine(lists, du, r if step is None else r * step[k])
        if need_bias:
            grad_bias += _combine(lists, du, ones)
        if k == 0 and not (need_x or need_step):
            break
        q = _gather_sum(du, at[k], W)
        if need_step:
            grad_step[k] = (q * r).sum(dtype=torch.float64)
        dr = q if step is None else q * step[k]
        if need_x:
            grad_x += dr
        if k == 0:
            break
        lists = None
        if need_D:
            lists = _group(at[k - 1], p)
            grad_atoms -= _combine(lists, z[k - 1], dr)
        if k > lowest:
            du = _entries_at(at[k - 1], du, at[k]) - _dots(at[k - 1], atoms, dr)
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
