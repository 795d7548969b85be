"""The factored encoders, z <- h(z + step W (x - D z) + b), without S and without [p, p].

M-sparse: the residual x - D z is a gather-sum of atoms, the rest one stage over W, to whose product
z is added at its m entries before the selection. Of the products [B, p] one block of rows is held
at a time. Backward, with du_k on the support of stage k, r_k its residual and q_k = W' du_k:
dr_k = step_k q_k, dx = sum dr_k, dW = sum step_k du_k r_k', db = sum du_k, dstep_k = <q_k, r_k>,
dD = -sum dr_k z_{k-1}', du_{k-1} = du_k - D' dr_k on the support of z_{k-1}: gather-sums, dots with
atoms and sums by unit; flops O(K B m n), memory beyond the gradients O(K B (n + m)).

The l0 encoder has dense codes: products as PyTorch multiplies them, and the kernels of thresholds.
With g the gradient of z_k, du = h'(u) g, q = du W and dr = step q: dx += dr, dW += step du' r,
db += sum of du, dstep = <q, r>, dD -= dr' z_{k-1}, and g of z_{k-1} is du - dr D. 4 K B p n flops
forward, twice that more backward; of [B, p], beside what is saved, a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._matrices import by_columns, gradient_of_matrix, stage_theta
from . import decode, encode_dense, thresholds, unit_lists

ELEMENTS = encode_dense.BLOCK  # of a product [B, p] that may be held


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
    """Serves ``deepl0::encode_top_m_factored``. 2 K B (n p + m n) flops."""
    dtype, p, wide = x.dtype, W.shape[0], W.float()
    atoms = _atoms(D) if len(m) > 1 else D
    codes: list[list[tuple[Tensor, Tensor]]] = [[] for _ in m]
    for rows in x.split(max(1, ELEMENTS // max(1, p))):
        code: tuple[Tensor, Tensor] | None = None
        for k, entries in enumerate(m):
            r = rows.float()
            if code is not None:
                r = r - _gather_sum(*code, atoms)
            if step is not None:
                r = r * step[k]
            u = encode_dense.first_product(r, wide, bias)
            if code is not None:  # the indices of a row are distinct: no two entries meet
                values, indices = code
                u.scatter_(1, indices, u.gather(1, indices) + values)
            code = torch.ops.deepl0.top_m(u, entries, positive)
            codes[k].append(code)
    *before, (values, indices) = (
        tuple(torch.cat(part) for part in zip(*code, strict=True)) for code in codes
    )
    if save and before:
        saved = tuple(torch.cat([t.flatten() for t in part]) for part in zip(*before, strict=True))
    else:
        saved = values.new_empty(0), indices.new_empty(0)
    return values.to(dtype), indices, saved[0], saved[1]


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


def encode_l0_factored(
    x: Tensor, W: Tensor, D: Tensor, bias: Tensor | None, step: Tensor | None, theta: Tensor,
    num_stages: int, sigma: float, kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0_factored``."""
    dtype, low, (x, W, D) = x.dtype, theta, (x.float(), W.float(), D.float())
    shape = (x.shape[0], W.shape[0])
    saved = torch.empty((num_stages if save else 0, *shape), dtype=torch.float32, device=x.device)
    # z is added by the product; the bias then is a column of W.
    r, with_bias = x, W if bias is None else torch.cat((W, bias.float()[:, None]), 1)
    z = None
    for k in range(num_stages):
        if z is not None:
            r = torch.addmm(x, z, D.t(), alpha=-1)
        scaled = r if step is None else r * step[k]
        out = saved[k] if save else None
        if z is None:
            u = encode_dense.first_product(scaled, W, bias, out)
        else:
            if bias is not None:
                scaled = torch.cat((scaled, scaled.new_ones(1, 1).expand(len(x), 1)), 1)
            u = torch.addmm(z, scaled, with_bias.t(), out=out)
        z = thresholds.threshold(u, stage_theta(low, k), sigma, kind)
    assert z is not None
    return z.to(dtype), saved


def encode_l0_factored_backward(
    grad_z: Tensor, saved: Tensor, x: Tensor, W: Tensor, D: Tensor, step: Tensor | None,
    theta: Tensor, sigma: float, kind: str, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0_factored_backward``: gradients in x, W, D, theta, the bias and the
    steps, those in the mask."""
    need_x, need_W, need_D, need_theta, need_bias, need_step = (mask & 1 << i for i in range(6))
    dtype, of_D, (x, W, D) = x.dtype, D, (x.float(), W.float(), D.float())
    stages = saved.shape[0]
    grad_x = torch.zeros_like(x) if need_x else x.new_empty(0)
    grad_W = torch.zeros_like(W) if need_W else x.new_empty(0)
    grad_D = x.new_zeros(D.shape if need_D else 0)
    grad_theta = theta.new_zeros(theta.shape if need_theta else 0)
    grad_bias = x.new_zeros(len(W) if need_bias else 0)
    grad_step = x.new_zeros(stages if need_step else 0)
    lowest = 0 if mask & ~4 else 1
    g = grad_z.float()
    for k in range(stages - 1, lowest - 1, -1):
        here = stage_theta(theta, k)
        du, of_theta = thresholds.threshold_backward(
            g, saved[k], here, sigma, kind, 1 | (2 if need_theta else 0)
        )
        if need_theta:
            stage_theta(grad_theta, k).add_(of_theta)
        z, r = None, x
        if k > 0 and mask & 38:  # of W, D and the steps
            z = thresholds.threshold(saved[k - 1], stage_theta(theta, k - 1), sigma, kind)
        if z is not None and (need_W or need_step):
            r = torch.addmm(x, z, D.t(), alpha=-1)
        if need_W:
            grad_W.addmm_(du.t(), r if step is None else r * step[k])
        if need_bias:
            grad_bias += du.sum(0)
        if k == 0 and not (need_x or need_step):
            break
        q = du @ W
        if need_step:
            grad_step[k] = (q * r).sum(dtype=torch.float64)
        dr = q if step is None else q * step[k]
        if need_x:
            grad_x += dr
        if z is not None and need_D:
            grad_D.addmm_(dr.t(), z, alpha=-1)
        if k > lowest:
            g = torch.addmm(du, dr, D, alpha=-1)
    if need_D:
        grad_D = gradient_of_matrix(of_D).copy_(grad_D)
    low = (t.to(dtype) for t in (grad_x, grad_W, grad_D, grad_bias))
    grad_x, grad_W, grad_D, grad_bias = low
    return grad_x, grad_W, grad_D, grad_theta, grad_bias, grad_step
