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
BLOCK = 1 << 24


def blocks(batch: int, p: int) -> list[slice]:
    """Blocks of rows of a batch; their number depends on shapes alone."""
    size = max(64, BLOCK // max(1, p))
    return [slice(i * size, min(batch, (i + 1) * size)) for i in range(ceil_div(batch, size))]


def first_product(x: Tensor, W: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x W' + b."""
    if bias is None:
        return torch.mm(x, W.t(), out=out)
    return torch.addmm(bias.to(x.dtype), x, W.t(), out=out)


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, num_stages: int, positive: bool,
    values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
) -> None:  # fmt: skip
    """The code [B, m] of the last stage, and [K - 1, B, m] of those before, unless those are
    empty; with [rows, p] pre-activations of a block at a time."""
    p, m = W.shape[0], values.shape[1]
    W, S = W.float(), None if S is None else S.float()
    for rows in blocks(x.shape[0], p):
        wx = first_product(x[rows].float(), W, bias)
        z, at = torch.ops.deepl0.top_m(wx, m, positive)
        for k in range(1, num_stages):
            assert S is not None
            if saved_values.shape[0] > 0:
                saved_values[k - 1, rows], saved_indices[k - 1, rows] = z, at
            u = torch.addmm(wx, unpool(z, at, p), stage_matrix(S, k - 1).t())
            z, at = torch.ops.deepl0.top_m(u, m, positive)
        values[rows], indices[rows] = z.to(x.dtype), at


def encode_top_m_backward(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, positive: bool, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S and the bias, those in the mask, in the dtype of x."""
    (steps, batch, _), p = saved_values.shape, W.shape[0]
    need_x, need_W, need_S, need_bias = (mask & bit for bit in (1, 2, 4, 8))
    need_total = mask & 11
    at = (*saved_indices, indices)
    matrix = W.float() if need_x else W
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_W = torch.zeros(W.shape if need_W else 0, dtype=torch.float32, device=x.device)
    grad_bias = torch.zeros(p if need_bias else 0, dtype=torch.float32, device=x.device)
    S = None if S is None else S.float()
    grad_S = x.new_empty(0) if S is None or not need_S else gradient_of_matrix(S).zero_()
    for rows in blocks(batch, p):
        du = unpool(grad_values[rows].float(), indices[rows], p)
        total = du
        for k in range(steps, 0, -1):
            assert S is not None
            below, code = at[k - 1][rows], saved_values[k - 1, rows]
            if need_S:
                stage_matrix(grad_S, k - 1).addmm_(du.t(), unpool(code, below, p))
            if k > 1 or need_total:
                on_support = (du @ stage_matrix(S, k - 1)).gather(1, below)
                if positive:
                    on_support = on_support.masked_fill(code == 0, 0.0)
                du = unpool(on_support, below, p)
            if need_total:
                total = total + du
        if need_W:
            grad_W.addmm_(total.t(), x[rows].float())
        if need_x:
            grad_x[rows] = (total @ matrix).to(x.dtype)
        if need_bias:
            grad_bias += total.sum(0)
    return grad_x, grad_W.to(x.dtype), grad_S.to(x.dtype), grad_bias.to(x.dtype)


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, theta: Tensor, num_stages: int,
    sigma: float, kind: str, saved: Tensor,
) -> Tensor:  # fmt: skip
    """z of the last stage; the pre-activations into ``saved`` [K, B, p], unless that is empty."""
    shape, save = (x.shape[0], W.shape[0]), saved.shape[0] > 0
    u = wx = first_product(x, W, bias, saved[0] if save else None)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S, theta and the bias, those in the mask, for float32; formulas in
    encode_tiles.py."""
    need_x, need_W, need_S, need_theta, need_bias = (mask & bit for bit in (1, 2, 4, 8, 16))
    need_total = mask & 19
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
    grad_bias = total.sum(0) if total is not None and need_bias else x.new_empty(0)
    return grad_x, grad_W, grad_S, grad_theta, grad_bias
