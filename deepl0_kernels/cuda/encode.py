"""The M-sparse encoder: W x + b by torch's product, then a gather stage each
(csrc/cuda/encode.h). Its backward by products on supports and unit lists (csrc/cuda/unit_lists.h).

A product goes the dense way where flops are cheaper than gathers; the rules stand in library.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import by_columns, stage_matrix
from . import library

# Of W x at a time: 1 GB.
ELEMENTS = 1 << 28


def encode_top_m(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    bias: Tensor | None,
    m: int,
    num_stages: int,
    positive: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Serves ``deepl0::encode_top_m``.

    Bytes: x, W and 4 B p for W x + b, written once and read by every stage; then 4 B m p of S' from
    L2 a stage, or a product with the dense code. No more than ``ELEMENTS`` of W x + b are held at a
    time.
    """
    kernels = library.kernels
    p = W.shape[0]
    most = max(1, ELEMENTS // max(1, p))
    if x.shape[0] > most:
        rest = (W, S, bias, m, num_stages, positive, save)
        parts = [encode_top_m(rows, *rest) for rows in x.split(most)]
        values, indices, *saved = (list(t) for t in zip(*parts, strict=True))
        saved_values, saved_indices = (torch.cat(t, 1) for t in saved)
        return torch.cat(values), torch.cat(indices), saved_values, saved_indices
    wx = product(x, W, bias)
    values, indices = kernels.top_m(wx, m, positive)
    gather = library.gathers_pay(p, m)
    before = []
    for k in range(1, num_stages):
        assert S is not None
        before.append((values, indices))
        step = stage_matrix(S, k - 1)
        if gather:
            atoms = library.transposed(step)
            values, indices = kernels.gather_top_m(wx, values, indices, atoms, positive)
        else:
            z = kernels.unpool(values, indices, p)
            add_product = wx.addmm_ if k + 1 == num_stages else wx.addmm
            u = add_product(z, step.t().to(z.dtype))
            values, indices = kernels.top_m(u, m, positive)
    if save and before:
        saved_values, saved_indices = (torch.stack(s) for s in zip(*before, strict=True))
    else:
        saved_values, saved_indices = (t.new_empty((0, *t.shape)) for t in (values, indices))
    return values.to(x.dtype), indices, saved_values, saved_indices


def encode_top_m_backward(
    grad_values: Tensor,
    values: Tensor | None,
    indices: Tensor,
    saved_values: Tensor,
    saved_indices: Tensor,
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Serves ``deepl0::encode_top_m_backward``: gradients in x, W, S and the bias, empty where not
    wanted.

    With g the gradient of the last values: du_K = g on the last support; dS += du_{k+1} z_k' and
    du_k = S' du_{k+1} on the support of z_k; dW = sum du x', db = sum du and dx = du W with du of
    all stages. Of nonnegative codes, which come with ``values``, what is 0 is not in the support.
    """
    kernels = library.kernels
    p, m = W.shape[0], grad_values.shape[1]
    index = [*saved_indices, indices]
    positive = values is not None
    last = grad_values.float()
    du = [last if values is None else _where_positive(last, values)]  # of the last stage first
    batch, n = x.shape
    grad_S = None
    if S is not None and mask & 4:
        grad_S = _Steps(S, not library.sorting_pays(p, m, 2.0 * batch * p * p))
    for k in range(len(saved_values) if mask else 0, 0, -1):
        assert S is not None
        step = stage_matrix(S, k - 1)
        upper, lower, z = index[k], index[k - 1], saved_values[k - 1]
        if grad_S is not None:
            grad_S.add(k - 1, upper, du[-1], lower, z)
        if k == 1 and not mask & 11:
            break
        if library.gathers_pay(p, m):
            below = kernels.product_on_support(upper, du[-1], lower, step)
        else:
            below = (kernels.unpool(du[-1], upper, p) @ step.float()).gather(1, lower)
        du.append(_where_positive(below, z) if positive else below)
    du.reverse()
    grad_x, grad_W, grad_bias = x.new_empty(0), W.new_empty(0), x.new_empty(0)
    if mask & 10 and library.sorting_pays(p, m * len(du), 2.0 * batch * p * n):
        all_du, lists = torch.stack(du), kernels.group(torch.stack(index), p)
        if mask & 2:
            grad_W = kernels.combine(*lists, all_du, x)
        if mask & 8:
            ones = torch.ones((batch, 1), dtype=torch.float32, device=x.device)
            grad_bias = kernels.combine(*lists, all_du, ones).flatten()
    elif mask & 10:
        total = kernels.unpool(du[0], index[0], p)
        for k in range(1, len(du)):
            total += kernels.unpool(du[k], index[k], p)
        if mask & 2:
            grad_W = total.t() @ x.float()
        if mask & 8:
            grad_bias = total.sum(0)
    if mask & 1:
        grad_x = kernels.gather_rows(torch.cat(du, 1), torch.cat(index, 1), W, False)
    grad_step = x.new_empty(0) if grad_S is None else grad_S.result(x.dtype)
    return grad_x, grad_W.to(x.dtype), grad_step, grad_bias.to(x.dtype)


def _where_positive(du: Tensor, values: Tensor) -> Tensor:
    """du where the entry of a nonnegative code is not 0."""
    return du.masked_fill(values == 0, 0.0)


class _Steps:
    """The gradient of S, one matrix or one a step, in the layout of S."""

    def __init__(self, S: Tensor, dense: bool) -> None:
        self.dense, self.transposed = dense, by_columns(S)
        self.shared = S.dim() == 2
        shape = (1, *S.shape) if self.shared else S.shape
        self.sums = torch.empty(shape, dtype=torch.float32, device=S.device)
        self.touched = [False] * len(self.sums)

    def add(self, step: int, upper: Tensor, du: Tensor, lower: Tensor, z: Tensor) -> None:
        """Adds sum_b du_b z_b'; in the transposed layout the two change places."""
        kernels = library.kernels
        at = 0 if self.shared else step
        rows, row_values, columns, column_values = upper, du, lower, z
        if self.transposed:
            rows, row_values, columns, column_values = lower, z, upper, du
        out, p = self.sums[at], self.sums.shape[1]
        if self.dense:
            left = kernels.unpool(row_values, rows, p)
            product = left.t() @ kernels.unpool(column_values, columns, p)
            out.copy_(out + product if self.touched[at] else product)
        elif library.atomics():
            accumulate = self.touched[at]
            kernels.outer_atomic(rows, row_values, columns, column_values, out, accumulate)
        else:
            start, _, entry = kernels.group(rows, p)
            kernels.outer(start, entry, row_values, columns, column_values, out, self.touched[at])
        self.touched[at] = True

    def result(self, dtype: torch.dtype) -> Tensor:
        for at, touched in enumerate(self.touched):
            if not touched:
                self.sums[at].zero_()
        out = (self.sums[0] if self.shared else self.sums).to(dtype)
        return out.transpose(-2, -1) if self.transposed else out


def product(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b in float32; half types multiply on tensor cores and accumulate in float32.

    b goes through the product, as its start or its last terms: no pass over [B, p] of its own.
    """
    if x.dtype == torch.float32:
        return x @ W.t() if bias is None else torch.addmm(bias.float(), x, W.t())
    if bias is not None:
        # No product of half types takes a bias and gives float32 in every version of torch. So b
        # is a column of W, and zeros up to rows of whole vectors; b times 1 is exact.
        more = 8 - x.shape[1] % 8
        one, zero = x.new_ones(1, 1), x.new_zeros(1, 1)
        x = torch.cat((x, one.expand(x.shape[0], more)), 1)
        W = torch.cat((W, bias[:, None], zero.expand(W.shape[0], more - 1)), 1)
    if x.device.type == "cpu":  # the tests' emulation: torch has no such product there
        return x.float() @ W.t().float()
    return torch.mm(x, W.t(), out_dtype=torch.float32)
