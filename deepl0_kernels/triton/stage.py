"""One stage, h(x W' + b + z S'): both products by PyTorch, the sum and h in one kernel, or for the
selection the sum in memory. Flops 2 B p (n + p).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import thresholds
from .product import first_product, product
from .top_m import keep_top_m


def threshold_stage(
    x: Tensor, W: Tensor, z: Tensor, S: Tensor, bias: Tensor | None, theta: Tensor, sigma: float,
    kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::threshold_stage``."""
    wx, late = first_product(x, W, bias)
    u = product(z, S.t())
    keep = u if save else None
    out = thresholds.stage(u, theta, sigma, kind, x.dtype, more=wx, bias=late, keep=keep)
    return out, u if save else torch.empty_like(u[:0])


def top_m_stage(
    x: Tensor, W: Tensor, z: Tensor, S: Tensor, bias: Tensor | None, m: int, positive: bool
) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::top_m_stage``."""
    u, late = first_product(x, W, bias)
    u += product(z, S.t())
    if late is not None:
        u += late
    kept, mask = keep_top_m(u, m, positive)
    return kept.to(x.dtype), mask
