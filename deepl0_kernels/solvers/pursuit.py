"""M-sparse solvers that refit by least squares on a support: HTP and CoSaMP. Batched."""

from __future__ import annotations

import torch
from torch import Tensor

from .._isolation import isolated
from ..ops import Plan, SparseCode, checks, decode, top_m, unpool
from ..ops.least_squares import least_squares
from ..ops.registration import records_gradient
from ..reference.descent import Loop, Quadratic, half_squares
from ..reference.least_squares import floor
from ..reference.least_squares import least_squares as reference
from . import step as steps
from .precision import in_range
from .result import SolverResult


@isolated(False)
@in_range("step")
def htp(
    x: Tensor,
    D: Tensor,
    m: int,
    *,
    step: float | None = None,
    tol: float = 1e-5,
    max_iter: int = 100,
    history: bool = True,
    plan: Plan | None = None,
) -> SolverResult[SparseCode]:
    """Hard thresholding pursuit: one step of IHT chooses the support, least squares the values.

    ``S <- support of the m largest |a + mu D'(x - D a)|``, ``a <- argmin ||x - D z||`` with z on S,
    from a = 0, until the support repeats. Atoms of a support that depend on its others (closer to
    their span than 10 sqrt(eps), as unit atoms) have the value 0. With ``mu < 1 / ||D||_2^2`` no
    iteration raises the objective but for those; a sample whose next code would ends with the one
    it has, not converged.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        m: 1 <= m <= min(n, p), nonzeros at most.
        step: mu, a number > 0; None for 0.99 / ||D||_2^2.
        tol: a sample has converged when its last step is at most ``tol ||a||``.
        max_iter: iterations at most.
        history: keep the objective of every iteration.
        plan: as in :func:`iht`.

    Returns:
        :class:`SolverResult` with a :class:`SparseCode` of m entries.

    Raises:
        ValueError: non-finite or mismatched x or D, an argument out of range.

    O(n (p + m) + m^3) a sample and iteration. Source: Foucart 2011.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        >>> a = torch.zeros(1, 64).index_fill_(1, torch.tensor([5, 40]), 1.0)
        >>> result = dk.solvers.htp(a @ D.T, D, m=2)
        >>> bool(result.converged), round(result.objective[-1].item(), 6)
        (True, 0.0)
    """
    facts = steps.known(D, plan)
    rows, D, m, tol, max_iter = _checked(x, D, m, tol, max_iter, facts, share=1)
    mu = facts.safe_step if step is None else steps.weight("step", step)
    fit = facts.once(LeastSquares)

    def propose(a, descent, b):
        support = top_m(a + mu * descent, m)[1]
        return fit.values(b, support), support

    return _solve(x, rows, D, m, tol, max_iter, history, propose)


@isolated(False)
@in_range()
def cosamp(
    x: Tensor,
    D: Tensor,
    m: int,
    *,
    tol: float = 1e-5,
    max_iter: int = 100,
    history: bool = True,
    plan: Plan | None = None,
) -> SolverResult[SparseCode]:
    """CoSaMP: merge the 2 m best atoms into the support, refit, keep the m largest, refit those.

    (The last step is an option of the paper; it only lowers the objective.) A sample stops with the
    best code it has seen: when it has converged, or, not converged, when an iteration would raise
    its objective.

    Arguments, result, and errors are those of :func:`htp`, but 3 m <= min(n, p).

    O(n (p + m) + 27 m^3) a sample and iteration. Source: Needell and Tropp 2009.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        >>> a = torch.zeros(1, 64).index_fill_(1, torch.tensor([5, 40]), 1.0)
        >>> dk.solvers.cosamp(a @ D.T, D, m=2).code.indices
        tensor([[ 5, 40]])
    """
    facts = steps.known(D, plan)
    rows, D, m, tol, max_iter = _checked(x, D, m, tol, max_iter, facts, share=3)
    fit = facts.once(LeastSquares)

    def propose(a, descent, b):
        # Atoms in use have key inf; of the others the 2 m that correlate most with the residual.
        key = descent.abs()
        proxy, at = top_m(key, 2 * m)
        merged = torch.zeros_like(key).scatter_(1, at, proxy + 1).masked_fill_(a != 0, torch.inf)
        score, support = top_m(merged, 3 * m)
        values = fit.values(b, support.masked_fill(score <= 0, -1))
        support = support.gather(1, top_m(values, m)[1])
        return fit.values(b, support), support

    return _solve(x, rows, D, m, tol, max_iter, history, propose)


class LeastSquares:
    """argmin ||x - D z|| with z on given supports, by the Gram matrix of all unit atoms.

    See :func:`deepl0_kernels.reference.least_squares.solve`, which serves where a gradient is
    recorded: differentiable in D and b, any number of times, as long as the same atoms are
    independent. With a ``ridge``, plus that times ``sum_i ||d_i||^2 (z_i - near_i)^2``; see
    :meth:`values`.
    """

    def __init__(self, D: Tensor, ridge: float = 0.0) -> None:
        self.norms, unit = steps.unit_atoms(D)
        self.gram = unit.T @ unit  # of a zero atom 0, also on the diagonal
        self.floor = floor(D.dtype)
        self.ridge = ridge
        if ridge:
            diagonal = self.gram.diagonal()
            diagonal += ridge * (diagonal > 0).double()

    def __call__(self, b: Tensor, support: Tensor, present: Tensor) -> Tensor:
        """Dense [B, p], on supports [B, s] where ``present``; see :meth:`values`."""
        values = self.values(b, support.masked_fill(~present, -1))
        return torch.zeros_like(b).scatter(1, support, values)

    def values(self, b: Tensor, support: Tensor, near: Tensor | None = None) -> Tensor:
        """[B, s], for b = D'x [B, p] and supports [B, s]: distinct atoms, or -1 where there is
        none, whose value is 0. ``near``: [B, s], what a ridge pulls to."""
        at = support.clamp_min(0)
        norms = self.norms[at]
        right = b.gather(1, at).double() / norms
        if near is not None:
            right += self.ridge * norms * near
        solve = reference if records_gradient(self.gram, right) else least_squares
        return (solve(self.gram, right, support, self.floor) / norms).to(b.dtype)


def _checked(x, D, m, tol, max_iter, facts, share):
    rows, D = steps.signals(x, D, facts), D.detach()
    limit = "min(n, p)" if share == 1 else f"min(n, p) / {share}"
    m = checks.integer("m", m, 1, min(D.shape) // share, limit)
    return rows, D, m, checks.positive("tol", tol), checks.integer("max_iter", max_iter, 1)


def _solve(x, rows, D, m, tol, max_iter, history, propose) -> SolverResult[SparseCode]:
    """Takes what is proposed while it lowers the objective; else the row ends where it is."""
    checks.boolean("history", history)
    quadratic, p = Quadratic(D), D.shape[1]

    def advance(x, a, descent, state):
        values, support = propose(a, descent, state["b"])
        new = unpool(values, support, p)
        residual = x - decode(SparseCode(values, support, p), quadratic.Dt.T)
        value = half_squares(residual)
        worse = value > state["value"]
        # The same code up to rounding is no other.
        state["stuck"] = worse & ((new - a).norm(dim=1) > tol * a.norm(dim=1))
        state["value"] = torch.where(worse, state["value"], value)
        state["residual"] = torch.where(worse[:, None], state["residual"], residual)
        return torch.where(worse[:, None], a, new)

    def new_state(residual, descent, a):
        stuck = torch.zeros(len(a), dtype=torch.bool, device=a.device)
        value = half_squares(residual)
        # (a = 0: b = D'x.)
        return {"b": descent, "value": value, "residual": residual, "stuck": stuck}

    a, iterations, converged, objective = Loop(
        quadratic, tol, max_iter, history, check_every=1
    ).run(rows, None, advance, lambda a: a.new_zeros(len(a)), new_state)
    values, indices = top_m(a, m)
    lead = x.shape[:-1]
    return SolverResult(
        SparseCode(values.reshape(*lead, m), indices.reshape(*lead, m), D.shape[1]),
        iterations.reshape(lead),
        converged.reshape(lead),
        objective.reshape(len(objective), *lead),
    )
