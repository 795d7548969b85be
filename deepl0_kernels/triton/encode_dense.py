"""Encoders by dense products, as PyTorch multiplies them, between kernels of this package.

The M-sparse encoder for long codes that are not sparse enough for gathers, by blocks of rows, with
the selection of ``top_m``; and the l0-regularized encoder and its backward in float32, where that
is faster than products inside a kernel (``product.by_pytorch``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import gradient_of_matrix, stage_matrix, stage_theta
from ..reference import unpool
from . import thresholds
from .launch import ceil_div

# Elements of a block of pre-activations.
_BLOCK = 1 << 24


def blocks(batch: int, p: int) -> list[slice]:
    """Blocks of rows of a batch; their number depends on shapes alone."""
    size = max(64, _BLOCK // max(1, p))
    return [slice(i * size, min(batch, (i + 1) * size)) for i in range(ceil_div(batch, size))]


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, num_stages: int,
    values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
) -> None:  # fmt: skip
    """The code [B, m] of the last stage, and [K - 1, B, m] of those before, unless those are
    empty; with [rows, p] pre-activations of a block at a time."""
    p, m = W.shape[0], values.shape[1]
    W, S = W.float(), None if S is None else S.float()
    for rows in blocks(x.shape[0], p):
        wx = x[rows].float() @ W.t()
        z, at = torch.ops.deepl0.top_m(wx, m)
        for k in range(1, num_stages):
            assert S is not None
            if saved_values.shape[0] > 0:
                saved_values[k - 1, rows], saved_indices[k - 1, rows] = z, at
            u = torch.addmm(wx, unpool(z, at, p), stage_matrix(S, k - 1).t())
            z, at = torch.ops.deepl0.top_m(u, m)
        values[rows], indices[rows] = z.to(x.dtype), at


def encode_top_m_backward(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, mask: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W and S, those in the mask, in the dtype of x."""
    (steps, batch, _), p = saved_values.shape, W.shape[0]
    need_x, need_W, need_S = mask & 1, mask & 2, mask & 4
    at = (*saved_indices, indices)
    matrix = W.float() if need_x else W
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_W = torch.zeros(W.shape if need_W else 0, dtype=torch.float32, device=x.device)
    S = None if S is None else S.float()
    grad_S = x.new_empty(0) if S is None or not need_S else gradient_of_matrix(S).zero_()
    for rows in blocks(batch, p):
        du = unpool(grad_values[rows].float(), indices[rows], p)
        total = du
        for k in range(steps, 0, -1):
            assert S is not None
            below = at[k - 1][rows]
            if need_S:
                z = unpool(saved_values[k - 1, rows], below, p)
                stage_matrix(grad_S, k - 1).addmm_(du.t(), z)
            if k > 1 or need_x or need_W:
                du = unpool((du @ stage_matrix(S, k - 1)).gather(1, below), below, p)
            if need_x or need_W:
                total = total + du
        if need_W:
            grad_W.addmm_(total.t(), x[rows].float())
        if need_x:
            grad_x[rows] = (total @ matrix).to(x.dtype)
    return grad_x, grad_W.to(x.dtype), grad_S.to(x.dtype)


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor, num_stages: int, sigma: float,
    kind: str, saved: Tensor,
) -> Tensor:  # fmt: skip
    """z of the last stage; the pre-activations into ``saved`` [K, B, p], unless that is empty."""
    shape, save = (x.shape[0], W.shape[0]), saved.shape[0] > 0
    u = wx = torch.mm(x, W.t(), out=saved[0] if save else x.new_empty(shape))
    z = wx
    for k in range(num_stages):
        if k > 0:
            assert S is not None
            u = saved[k] if save else x.new_empty(shape)
            torch.addmm(wx, z, stage_matrix(S, k - 1).t(), out=u)
        z = thresholds.threshold(u, stage_theta(theta, k), sigma, kind)
    return z


def encode_l0_backward(
    grad_z: Tensor, saved: Tensor, x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor,
    sigma: float, kind: str, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S and theta, those in the mask, for float32; formulas in
    encode_tiles.py."""
    need_x, need_W, need_S, need_theta = (mask & bit for bit in (1, 2, 4, 8))
    need_total = mask & 3
    grad_S = x.new_zeros(S.shape if S is not None and need_S else 0)
    grad_theta = theta.new_zeros(theta.shape if need_theta else 0)
    above, total = grad_z, torch.zeros_like(grad_z) if need_total else None
    for k in reversed(range(saved.shape[0])):
        here = stage_theta(theta, k)
        wanted = (k > 0 or need_total > 0) | (2 if need_theta else 0)
        if wanted:
            du, of_theta = thresholds.threshold_backward(above, saved[k], here, sigma, kind, wanted)
        if need_theta:
            stage_theta(grad_theta, k).add_(of_theta)
        if total is not None:
            total += du
        if k > 0:
            assert S is not None
            if need_S:
                z = thresholds.threshold(saved[k - 1], stage_theta(theta, k - 1), sigma, kind)
                stage_matrix(grad_S, k - 1).addmm_(du.t(), z)
            if k > 1 or need_total or need_theta:
                above = du @ stage_matrix(S, k - 1)
    grad_x = total @ W if total is not None and need_x else x.new_empty(0)
    grad_W = total.t() @ x if total is not None and need_W else W.new_empty(0)
    return grad_x, grad_W, grad_S, grad_theta
