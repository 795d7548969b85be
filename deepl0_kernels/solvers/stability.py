"""How firmly the support of a code stands."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._isolation import isolated
from ..ops import SparseCode, checks, top_m
from . import step as steps
from .precision import in_range

# Rows at a time: two arrays [rows, p] are held.
_ROWS = 8192


@isolated(False)
@in_range("lam", "step")
def support_margin(
    x: Tensor,
    D: Tensor,
    code: Tensor | SparseCode,
    *,
    m: int | None = None,
    lam: float | None = None,
    step: float | None = None,
) -> Tensor:
    """By how much ``u = a + mu D'(x - D a)`` may move before hard thresholding changes the support.

    While every entry of u moves by less than the margin, the next iteration of :func:`iht` or
    :func:`iht_m` has the support of a. Below 0, the next iteration changes it. A signal that moves
    by delta moves entry i of u by at most ``mu ||d_i|| ||delta||``.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        code: dense [..., p], or a :class:`SparseCode`; of a dense one the m largest entries.
        m, lam: exactly one, the problem that the code belongs to.
        step: mu; None for 0.99 / ||D||_2^2.

    Returns:
        [...], in the dtype of x; inf where m = p.

    Raises:
        ValueError: non-finite or mismatched arguments, both or neither of m and lam.

    O(n p) a sample. For m it is half the gap between the kept and the other entries of ``|u|``, for
    lam the distance of ``|u|`` to ``sqrt(2 lam mu)``.

    Example:
        >>> x, D = torch.randn(8, 16), torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> result = dk.solvers.iht_m(x, D, m=3)
        >>> dk.solvers.support_margin(x, D, result.code, m=3).shape
        torch.Size([8])
    """
    rows, D = steps.signals(x, D), D.detach()
    steps.one_problem(m, lam)
    p = D.shape[1]
    mu = steps.safe_step(D) if step is None else steps.weight("step", step)
    a = code.to_dense() if isinstance(code, SparseCode) else code
    a = steps.codes("code", a, x, D)
    if lam is not None:
        theta = math.sqrt(2 * steps.weight("lam", lam) * mu)
        kept = a != 0
    else:
        m = checks.integer("m", m, 1, p, "p")  # type: ignore[arg-type]
        if isinstance(code, SparseCode):
            if code.indices.shape[-1] != m:
                raise ValueError(f"code must have m = {m} entries, got {code.indices.shape[-1]}")
            indices = code.indices.reshape(-1, m)
        else:
            indices = top_m(a, m)[1]
        kept = torch.zeros_like(a, dtype=torch.bool).scatter_(1, indices, True)
    parts = []
    for i in range(0, len(rows), _ROWS):
        at = slice(i, i + _ROWS)
        u = (a[at] + mu * (rows[at] - a[at] @ D.T) @ D).abs()
        low = torch.where(kept[at], u, torch.inf).amin(1)
        high = torch.where(kept[at], -torch.inf, u).amax(1)
        parts.append((low - high) / 2 if lam is None else torch.minimum(low - theta, theta - high))
    return torch.cat(parts or [rows.new_empty(0)]).reshape(x.shape[:-1])
