"""The factored encoders, z <- h(z + step W (x - D z) + b), without S and without [p, p].

M-sparse: what it is made of, of the kernels named here, stands in _factored.py. The l0 encoder has
dense codes: products as PyTorch multiplies them, and the kernels of thresholds. With g the gradient
of z_k, du = h'(u) g, q = du W and dr = step q: dx += dr, dW += step du' r, db += sum of du,
dstep = <q, r>, dD -= dr' z_{k-1}, and g of z_{k-1} is du - dr D. 4 K B p n flops forward, twice
that more backward; of [B, p], beside what is saved, a few at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _factored
from .._matrices import gradient_of_matrix, stage_theta
from . import decode, encode_dense, thresholds, unit_lists


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


KERNELS = _factored.Kernels(
    elements=encode_dense.BLOCK,
    halves=False,
    product=encode_dense.first_product,
    top_m=torch.ops.deepl0.top_m,
    atoms=lambda D: D.t().contiguous(),
    gather_sum=_gather_sum,
    dots=_dots,
    group=_group,
    combine=_combine,
)


def encode_top_m_factored(*args: Any) -> tuple[Tensor, ...]:
    """Serves ``deepl0::encode_top_m_factored``."""
    return _factored.encode_top_m(KERNELS, *args)


def encode_top_m_factored_backward(*args: Any) -> tuple[Tensor, ...]:
    """Serves ``deepl0::encode_top_m_factored_backward``."""
    return _factored.encode_top_m_backward(KERNELS, *args)


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
