"""The factored l0 encoder, z <- h(z + step W (x - D z) + b), without S and without [p, p]: products
by PyTorch, and a kernel a stage that adds z and b, thresholds and rounds.

Backward, with g the gradient of z_k, du = h'(u) g, q = du W and dr = step q: dx += dr,
dW += step du' r, db += sum of du, dstep = <q, r>, dD -= dr' z_{k-1}, and g of z_{k-1} is du - dr D.
4 K B p n flops forward, twice that more backward; of [B, p], beside what is saved, a few at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import gradient_of_matrix, stage_theta
from . import thresholds
from .product import first_product, product


def encode_l0_factored(
    x: Tensor, W: Tensor, D: Tensor, bias: Tensor | None, step: Tensor | None, theta: Tensor,
    num_stages: int, sigma: float, kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0_factored``."""
    shape = (num_stages if save else 0, x.shape[0], W.shape[0])
    saved = x.new_empty(shape, dtype=torch.float32)
    z = None
    for k in range(num_stages):
        r = x if z is None else x - product(z, D.t())
        if step is not None:
            r = r.float() * step[k]
        u, late = first_product(r, W, bias, saved[k] if save else None)
        keep = u if save and (z is not None or late is not None) else None
        here = stage_theta(theta, k)
        z = thresholds.stage(u, here, sigma, kind, x.dtype, more=z, bias=late, keep=keep)
    assert z is not None
    return z, saved


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
            below = stage_theta(theta, k - 1)
            z = thresholds.stage(saved[k - 1], below, sigma, kind, dtype)
        if z is not None and (need_W or need_step):
            r = x - product(z, of_D.t())
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
            grad_D.addmm_(dr.t(), z.float(), alpha=-1)
        if k > lowest:
            g = torch.addmm(du, dr, D, alpha=-1)
    if need_D:
        grad_D = gradient_of_matrix(of_D).copy_(grad_D)
    low = (t.to(dtype) for t in (grad_x, grad_W, grad_D, grad_bias))
    grad_x, grad_W, grad_D, grad_bias = low
    return grad_x, grad_W, grad_D, grad_theta, grad_bias, grad_step
