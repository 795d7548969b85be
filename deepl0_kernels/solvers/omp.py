"""Orthogonal matching pursuit, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import SparseCode, checks
from ..ops.omp import omp as pursue
from . import step as steps
from .result import SolverResult


@steps.without_autocast
def omp(x: Tensor, D: Tensor, m: int, *, tol: float = 1e-6) -> SolverResult:
    """Greedy m-sparse codes: add the atom that correlates most with the residual, refit, repeat.

    Atoms compete at unit norm, whatever their norm in D; the values belong to D as given.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        m: 1 <= m <= min(n, p), atoms at most.
        tol: a sample stops early when no atom's correlation exceeds ``tol ||x||``, or the next one
            depends linearly on those it has; its entries left over are zeros.

    Returns:
        :class:`SolverResult` with a :class:`SparseCode` of m entries, ascending; ``iterations``
        counts the atoms, ``converged`` says that m atoms were found or none was left to add;
        ``objective`` is 1/2 ||x - D a||^2 with 0, 1, .., m atoms.

    Raises:
        ValueError: non-finite or mismatched x or D, m or tol out of range.

    O(m p) a sample and atom after p^2 n once: a Cholesky factorisation of the Gram matrix, whose
    pivots the pursuit chooses. Few samples, or a Gram matrix above 1 GiB: O(n p) a sample and atom
    through the residual. Sources: Pati, Rezaiifar, Krishnaprasad 1993; Rubinstein, Zibulevsky, Elad
    2008; Sturm, Christensen 2012.
    """
    rows = steps.signals(x, D)
    D = D.detach()
    n, p = D.shape
    m = checks.integer("m", m, 1, min(n, p), "min(n, p)")
    tol = steps.positive("tol", tol)
    norms = D.norm(dim=0)
    unit = D / norms.clamp_min(torch.finfo(D.dtype).tiny)
    values, indices, count, objective = pursue(rows, unit, m, tol)
    values = torch.where(values != 0, values / norms[indices], values)
    lead = x.shape[:-1]
    return SolverResult(
        SparseCode(values.reshape(*lead, m), indices.reshape(*lead, m), p),
        count.reshape(lead),
        torch.ones_like(count, dtype=torch.bool).reshape(lead),
        objective.reshape(m + 1, *lead),
    )
