"""Orthogonal matching pursuit, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from .._isolation import isolated
from ..ops import Plan, SparseCode, checks, decode
from ..ops.omp import omp as pursue
from ..reference.descent import half_squares
from . import step as steps
from .precision import in_range
from .result import SolverResult

# A correlation of an atom with what is left of the signal is known to so many eps of the signal.
_ROUNDING = 64


@isolated(False)
@in_range()
def omp(
    x: Tensor,
    D: Tensor,
    m: int,
    *,
    tol: float = 1e-6,
    positive: bool = False,
    plan: Plan | None = None,
) -> SolverResult[SparseCode]:
    """Greedy m-sparse codes: add the atom that correlates most with the residual, refit, repeat.

    Atoms compete at unit norm, whatever their norm in D; the values belong to D as given.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        m: 1 <= m <= min(n, p), atoms at most.
        tol: a sample stops early when no atom's correlation exceeds ``tol ||x||``, or the next one
            depends linearly on those it has; its entries left over are zeros.
        positive: nonnegative codes: the atom of largest correlation above 0 is added, and the code
            is nonnegative least squares on all atoms chosen so far.
        plan: as in :func:`iht`.

    Returns:
        :class:`SolverResult` with a :class:`SparseCode` of m entries, ascending; ``iterations``
        counts the atoms, ``converged`` says that m atoms were found or that no atom correlates with
        what is left, up to rounding: not where a dependent atom ended the pursuit before.
        ``objective`` is 1/2 ||x - D a||^2 with 0, 1, .., m atoms.

    Raises:
        ValueError: non-finite or mismatched x or D, m or tol out of range.
        TypeError: positive is not True or False.

    With ``positive`` a chosen atom may have the value 0: it counts, is not chosen again, and comes
    back once a later code wants it (its correlation exceeds ``tol ||x||``). This is the pursuit of
    Bruckstein, Elad and Zibulevsky 2008, not an approximation such as that of Yaghoobi, Wu and
    Davies 2015, who pass over atoms that would make a coefficient negative. The least squares are
    solved by an active set (Lawson and Hanson 1974) that goes on from the atom before: one that
    makes no coefficient negative costs what it does without ``positive``, every atom that leaves
    O(m p) or O(m n) more (Nguyen, Soussen, Idier, Djermoune 2019).

    O(m p) a sample and atom after p^2 n once: a Cholesky factorisation of the Gram matrix, whose
    pivots the pursuit chooses. Few samples, or a Gram matrix above 1 GiB: O(n p) a sample and atom
    through the residual. On a GPU PyTorch's operators serve; ``dk.use_backend("cuda")`` asks for
    CUDA kernels, float32, p <= 16384, m <= 128, that no GPU has measured yet. Sources: Pati,
    Rezaiifar, Krishnaprasad 1993; Rubinstein, Zibulevsky, Elad 2008; Sturm, Christensen 2012.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        >>> a = torch.zeros(1, 64).index_fill_(1, torch.tensor([5, 40]), 1.0)
        >>> dk.solvers.omp(a @ D.T, D, m=2).code.indices
        tensor([[ 5, 40]])
    """
    facts = steps.known(D, plan)
    rows = steps.signals(x, D, facts)
    n, p = D.shape
    m = checks.integer("m", m, 1, min(n, p), "min(n, p)")
    tol, positive = checks.positive("tol", tol), checks.boolean("positive", positive)
    norms, unit = facts.once(_atoms)
    values, indices, count, objective = pursue(rows, unit, m, tol, positive)
    # What the code leaves: the pursuit's own figures are differences, which cancel.
    residual = rows - decode(SparseCode(values, indices, p), unit)
    fit = half_squares(residual)
    k = torch.arange(m + 1, device=D.device)[:, None]
    objective = torch.where(k < count, torch.maximum(objective, fit), fit)
    objective[0] = half_squares(rows)
    correlation = residual @ unit
    most = (correlation if positive else correlation.abs()).amax(1)
    floor = (tol + _ROUNDING * torch.finfo(D.dtype).eps) * (2 * objective[0]).sqrt()
    values = (values.double() / norms[indices]).to(D.dtype)
    lead = x.shape[:-1]
    return SolverResult(
        SparseCode(values.reshape(*lead, m), indices.reshape(*lead, m), p),
        count.reshape(lead),
        ((count == m) | (most <= floor)).reshape(lead),
        objective.reshape(m + 1, *lead),
    )


def _atoms(D: Tensor) -> tuple[Tensor, Tensor]:
    norms, unit = steps.unit_atoms(D)
    return norms, unit.to(D.dtype)
