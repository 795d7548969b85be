"""From a prediction of a code to a sparse one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._isolation import isolated
from ..ops import Plan, SparseCode, checks, hard_threshold, top_m
from . import step as steps
from .precision import in_range
from .pursuit import LeastSquares


@isolated(False)
@in_range("lam")
def polish(
    x: Tensor,
    D: Tensor,
    code: Tensor | SparseCode,
    *,
    m: int | None = None,
    lam: float | None = None,
    ridge: float = 0.5,
    plan: Plan | None = None,
) -> Tensor:
    """The sparse code that a prediction stands for: least squares near it on its support, a hard
    decision, least squares again.

    ``v = argmin ||x - D z||^2 + ridge sum_i ||d_i||^2 (z_i - code_i)^2`` with z on the support of
    ``code``; of v the m largest entries stay, or those with ``|v_i| >= sqrt(2 lam mu)``, mu =
    0.99 / ||D||_2^2; then the same on what stayed, near v. A prediction that hedges, of more
    entries than its code will have (LISTA's), says more about that code than its largest entries.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        code: dense [..., p], or a :class:`SparseCode`; its entries other than 0 are its support.
        m, lam: exactly one, the problem that the code is of: see :func:`iht_m` and :func:`iht`.
        ridge: > 0, how much the prediction counts: near 0 for least squares alone, large for the
            prediction as it is. The scale of D does not matter.
        plan: as in :func:`iht`.

    Returns:
        Dense codes [..., p] in the dtype of x, at most m entries or as many as pass.

    Raises:
        ValueError: non-finite or mismatched arguments, both or neither of m and lam.

    Not a descent: the objective may rise where ``code`` is good already. Where the optimal code is
    a fixed point of IHT and its support was predicted, the result nears it as ridge falls. Solved
    in float64: O(n p + s^3) a sample with s entries, twice; D'D, O(n p^2), once a plan and ridge.
    docs/reproduction.md has figures. Source: CoSaMP's pruning, Needell and Tropp 2009, with the
    proximal term of Rockafellar 1976.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        >>> a = torch.zeros(1, 64).index_fill_(1, torch.tensor([5, 40]), 1.0)
        >>> guess = 0.7 * a + torch.zeros(1, 64).index_fill_(1, torch.tensor([9]), 0.2)
        >>> found = dk.solvers.polish(a @ D.T, D, guess, m=2, ridge=1e-3)
        >>> torch.allclose(found, a, atol=1e-2)
        True
    """
    facts = steps.known(D, plan)
    rows, D = steps.signals(x, D, facts), D.detach()
    steps.one_problem(m, lam)
    theta = 0.0
    if lam is not None:
        theta = math.sqrt(2 * steps.weight("lam", lam) * facts.safe_step)
    most = D.shape[1] if m is None else checks.integer("m", m, 1, D.shape[1], "p")
    ridge = checks.positive("ridge", ridge)
    a = code.to_dense() if isinstance(code, SparseCode) else code
    a = steps.codes("code", a, x, D)
    fit, b = facts.once(_Near(ridge)), rows @ D
    values, at = _largest(a, most=D.shape[1])
    values = fit.values(b, at.masked_fill(values == 0, -1), values)
    kept, which = _largest(hard_threshold(values, theta), most)
    at = at.gather(1, which)
    values = fit.values(b, at.masked_fill(kept == 0, -1), kept)
    return torch.zeros_like(a).scatter(1, at, values).reshape(*x.shape[:-1], D.shape[1])


@dataclass(frozen=True)
class _Near:
    """What a plan keeps of D for a ridge."""

    ridge: float

    def __call__(self, D: Tensor) -> LeastSquares:
        return LeastSquares(D, self.ridge)


def _largest(a: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Of a [B, .] the entries other than 0, at most so many, and their places: as many columns as
    the widest row needs."""
    widest = int((a != 0).sum(1).max()) if len(a) else 0
    return top_m(a, min(widest, most))
