"""l1: the proximal method with momentum and restarts."""

from __future__ import annotations

from torch import Tensor

from .._isolation import isolated
from ..backends import implementation
from ..ops import Plan, checks
from . import step as steps
from .precision import in_range
from .result import SolverResult


@isolated(False)
@in_range("lam")
def fista(
    x: Tensor,
    D: Tensor,
    lam: float,
    *,
    init: str | Tensor = "zero",
    tol: float = 1e-5,
    max_iter: int = 1000,
    history: bool = True,
    positive: bool = False,
    plan: Plan | None = None,
) -> SolverResult[Tensor]:
    """Minimise ``1/2 ||x - D a||^2 + lam ||a||_1`` for every signal.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        lam: > 0.
        init: "zero", or codes [..., p] to start from.
        tol: a sample has converged when its last step is at most ``tol ||a||``.
        max_iter: iterations at most.
        history: keep the objective of every iteration.
        positive: minimise over a >= 0; of ``init`` the positive part is taken.
        plan: as in :func:`iht`.

    Returns:
        :class:`SolverResult` with a dense code. The objective need not fall in every iteration.

    Raises:
        ValueError: non-finite or mismatched x, D or init, lam or tol not > 0.
        TypeError: positive is not True or False.

    From zero, with a penalty that falls from the largest correlation (with ``positive`` the largest
    above 0) to ``lam`` in the first iterations, so that codes are sparse all the way; a sample
    cannot converge before. From codes, which are sparse already, the penalty is ``lam`` at once.
    With k nonzeros min(2 k p, 2 (n k + n p)) flops a sample and iteration, in one operator.
    Sources: Beck and Teboulle 2009; the momentum restarts where it points uphill (O'Donoghue and
    Candes 2015); the falling penalty is Hale, Yin and Zhang 2008.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> result = dk.solvers.fista(torch.randn(8, 16), D, lam=0.5)
        >>> bool(result.converged.all()), bool((result.code == 0).any())
        (True, True)
    """
    facts = steps.known(D, plan)
    steps.signals(x, D, facts)
    positive = checks.boolean("positive", positive)
    history = checks.boolean("history", history)
    lam, tol = steps.weight("lam", lam), checks.positive("tol", tol)
    max_iter = checks.integer("max_iter", max_iter, 1)
    start = None
    if isinstance(init, str):
        checks.one_of("init", init, ("zero",))
    else:
        start = steps.codes("init", init, x, D, positive)
    step = 1 / facts.squared_norm
    return descend(x, D.detach(), start, lam, step, tol, max_iter, history, positive)


def descend(
    x: Tensor,
    D: Tensor,
    start: Tensor | None,
    lam: float,
    step: float,
    tol: float,
    max_iter: int,
    history: bool,
    positive: bool,
) -> SolverResult[Tensor]:
    """:func:`fista` with a step of at most ``1 / ||D||_2^2``; nothing is checked."""
    rows = x.detach().reshape(-1, x.shape[-1])
    solve = implementation("fista", rows)
    a, iterations, converged, objective = solve(
        rows, D, start, lam, step, tol, max_iter, history, positive
    )
    lead = x.shape[:-1]
    return SolverResult(
        a.reshape(*lead, D.shape[1]),
        iterations.reshape(lead),
        converged.reshape(lead),
        objective.reshape(len(objective), *lead),
    )
