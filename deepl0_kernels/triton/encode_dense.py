"""Encoders by dense products, as PyTorch multiplies them, between kernels of this package.

The M-sparse encoder for long codes that are not sparse enough for gathers, by blocks of rows, with
the selection of ``top_m``; and the l0-regularized encoder and its backward in float32, where that
is faster than products inside a kernel (``product.by_pytorch``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.registration import gradient_of_matrix
from ..reference import unpool
from ..reference.precision import accumulation_dtype
from . import thresholds
from .encode import of_stage
from .launch import ceil_div

# Elements of a block of pre-activations.
_BLOCK = 1 << 24


def sparse_pays(p: int, m: int) -> bool:
    """Whether codes of m of p entries are multiplied by gathers, and kept in candidate buffers.

    A gather reads 4 m bytes of S' per pre-activation from L2 (5.5 TB/s on an H100), a dense
    product in float32 takes 2 p flops (50 TFLOP/s): they meet at p = 18 m, as predicted, not
    measured. A buffer holds m candidates and a tile's columns in registers.
    """
    return 16 * m <= p and m <= 896


def blocks(batch: int, p: int) -> list[slice]:
    """Blocks of rows of a batch; their number depends on shapes alone."""
    size = max(64, _BLOCK // max(1, p))
    return [slice(i * size, min(batch, (i + 1) * size)) for i in range(ceil_div(batch, size))]


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, m: int, num_stages: int, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.encode_top_m``, with [rows, p] pre-activations of a block at a time."""
    dtype, batch = accumulation_dtype(x.dtype), x.shape[0]
    values, indices = x.new_empty((batch, m)), x.new_empty((batch, m), dtype=torch.int64)
    before = x.new_empty((num_stages - 1 if save else 0, batch, m), dtype=dtype)
    before_at = torch.empty_like(before, dtype=torch.int64)
    W = W.to(dtype)
    S = None if S is None or num_stages == 1 else S.to(dtype)
    for rows in blocks(batch, W.shape[0]):
        wx = x[rows].to(dtype) @ W.t()
        z, at = torch.ops.deepl0.top_m(wx, m)
        for k in range(1, num_stages):
            assert S is not None
            if save:
                before[k - 1, rows], before_at[k - 1, rows] = z, at
            step = S[k - 1] if S.dim() == 3 else S
            u = torch.addmm(wx, unpool(z, at, W.shape[0]), step.t())
            z, at = torch.ops.deepl0.top_m(u, m)
        values[rows], indices[rows] = z.to(x.dtype), at
    return values, indices, before, before_at


def encode_top_m_backward(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W and S; see sparse_grad.py for the formulas."""
    dtype, (steps, batch, _), p = saved_values.dtype, saved_values.shape, W.shape[0]
    at = (*saved_indices, indices)
    matrix = W.to(dtype)
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_W = torch.zeros(W.shape, dtype=dtype, device=x.device)
    grad_S = x.new_empty(0)
    if S is not None:
        S = S.to(dtype)
        grad_S = gradient_of_matrix(S).zero_()
    for rows in blocks(batch, p):
        du = unpool(grad_values[rows].to(dtype), indices[rows], p)
        total = du
        for k in range(steps, 0, -1):
            assert S is not None
            step, grad = (S[k - 1], grad_S[k - 1]) if S.dim() == 3 else (S, grad_S)
            below = at[k - 1][rows]
            grad.addmm_(du.t(), unpool(saved_values[k - 1, rows], below, p))
            du = unpool((du @ step).gather(1, below), below, p)
            total = total + du
        grad_W.addmm_(total.t(), x[rows].to(dtype))
        if need_x:
            grad_x[rows] = (total @ matrix).to(x.dtype)
    return grad_x, grad_W.to(x.dtype), grad_S.to(x.dtype)


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor, num_stages: int, sigma: float,
    kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``reference.encode_l0``, for float32."""
    shape = (x.shape[0], W.shape[0])
    saved = x.new_empty((num_stages if save else 0, *shape))
    u = wx = torch.mm(x, W.t(), out=saved[0] if save else x.new_empty(shape))
    z = wx
    for k in range(num_stages):
        if k > 0:
            assert S is not None
            u = x.new_empty(shape) if not save else saved[k]
            torch.addmm(wx, z, of_stage(S, k - 1).t(), out=u)
        z = thresholds.threshold(u, of_stage(theta, k, 2), sigma, kind)
    return z, saved


def encode_l0_backward(
    grad_z: Tensor, saved: Tensor, x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor,
    sigma: float, kind: str, need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S and theta, for float32; formulas in encode_backward.py."""
    grad_S = x.new_empty(0) if S is None else x.new_zeros(S.shape)
    grad_theta = torch.zeros_like(theta)
    above, total = grad_z, torch.zeros_like(grad_z)
    for k in reversed(range(saved.shape[0])):
        here = of_stage(theta, k, 2)
        du, of_theta = thresholds.threshold_backward(above, saved[k], here, sigma, kind)
        of_stage(grad_theta, k, 2).add_(of_theta)
        total += du
        if k > 0:
            assert S is not None
            z = thresholds.threshold(saved[k - 1], of_stage(theta, k - 1, 2), sigma, kind)
            of_stage(grad_S, k - 1).addmm_(du.t(), z)
            above = du @ of_stage(S, k - 1)
    grad_x = total @ W if need_x else x.new_empty(0)
    return grad_x, total.t() @ x, grad_S, grad_theta
