"""Small problems that the solver tests share."""

from __future__ import annotations

import torch
from torch import Tensor


def planted(
    n: int = 30, p: int = 50, k: int = 4, rows: int = 40, seed: int = 0, dtype=torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """x [rows, n] = codes with k large entries times D' [n, p] (unit norm), plus a little noise."""
    g = torch.Generator().manual_seed(seed)
    D = torch.randn(n, p, generator=g, dtype=dtype)
    D /= D.norm(dim=0)
    code = torch.zeros(rows, p, dtype=dtype)
    where = torch.rand(rows, p, generator=g).argsort(1)[:, :k]
    signs = torch.randint(0, 2, (rows, k), generator=g).to(dtype) * 2 - 1
    code.scatter_(1, where, signs * (1 + torch.rand(rows, k, generator=g, dtype=dtype)))
    x = code @ D.T + 0.01 * torch.randn(rows, n, generator=g, dtype=dtype)
    return x, D, code
