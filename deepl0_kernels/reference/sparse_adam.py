"""Adam on the rows of a parameter that have a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def sparse_adam_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    t: int,
    unit_norm: bool,
) -> None:
    """Step t >= 1 of Adam, in place, on the rows of [rows, n] whose gradient is not all 0.

    With unit_norm without the part of the gradient that points along the row, which is brought to
    norm 1 behind; rows that are 0 stay without a direction.
    """
    rows = (grad != 0).any(1).nonzero()[:, 0]
    w, g, a, b = (x[rows] for x in (param, grad, exp_avg, exp_avg_sq))
    if unit_norm:
        squared = w.square().sum(1, keepdim=True)
        g = g - w * (g * w).sum(1, keepdim=True) / torch.where(squared > 0, squared, 1.0)
    a = a + (1 - beta1) * (g - a)
    b = beta2 * b + (1 - beta2) * g.square()
    w = w - lr / (1 - beta1**t) * a / (b.sqrt() / (1 - beta2**t) ** 0.5 + eps)
    if unit_norm:
        norms = w.norm(dim=1, keepdim=True)
        w = w / torch.where(norms > 0, norms, 1.0)
    for x, new in ((param, w), (exp_avg, a), (exp_avg_sq, b)):
        x[rows] = new
