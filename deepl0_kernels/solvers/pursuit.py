"""M-sparse solvers that refit by least squares on a support: HTP and CoSaMP. Batched."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import SparseCode, checks, top_m
from ..reference.descent import Loop, Quadratic
from . import step as steps
from .result import SolverResult


@steps.without_autocast
def htp(
    x: Tensor,
    D: Tensor,
    m: int,
    *,
    step: float | None = None,
    tol: float = 1e-5,
    max_iter: int = 100,
    history: bool = True,
) -> SolverResult:
    """Hard thresholding pursuit: one step of IHT chooses the support, least squares the values.

    ``S <- support of the m largest |a + mu D'(x - D a)|``, ``a <- argmin ||x - D z||`` with z on S,
    from a = 0. With ``mu < 1 / ||D||_2^2`` the objective never rises, and the support repeats after
    finitely many iterations.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        m: 1 <= m <= min(n, p), nonzeros.
        step: mu, a number > 0; None for 0.99 / ||D||_2^2.
        tol: a sample has converged when its last step is at most ``tol ||a||``.
        max_iter: iterations at most.
        history: keep the objective of every iteration.

    Returns:
        :class:`SolverResult` with a :class:`SparseCode` of m entries.

    Raises:
        ValueError: non-finite or mismatched x or D, an argument out of range.

    O(min(p^2, 2 n p) + m^3) a sample and iteration. Source: Foucart 2011.
    """
    rows, D, m, tol, max_iter = _checked(x, D, m, tol, max_iter, share=1)
    mu = steps.safe_step(D) if step is None else steps.positive("step", step)
    gram = D.T @ D

    def advance(x, b, a, descent, state):
        _, support = top_m(a + mu * descent, m)
        return _least_squares(gram, b, support)

    return _solve(x, rows, D, m, tol, max_iter, history, advance)


@steps.without_autocast
def cosamp(
    x: Tensor,
    D: Tensor,
    m: int,
    *,
    tol: float = 1e-5,
    max_iter: int = 100,
    history: bool = True,
) -> SolverResult:
    """CoSaMP: merge the 2 m best atoms into the support, refit, keep the m largest, refit those.

    (The last step is an option of the paper; it only lowers the objective.) A sample stops with the
    best code it has seen: when an iteration would raise its objective, or when it has converged.

    Arguments, result, and errors are those of :func:`htp`, but 3 m <= min(n, p).

    O(min(p^2, 2 n p) + 27 m^3) a sample and iteration. Source: Needell and Tropp 2009.
    """
    rows, D, m, tol, max_iter = _checked(x, D, m, tol, max_iter, share=3)
    quadratic = Quadratic(D)
    gram = D.T @ D

    def advance(x, b, a, descent, state):
        # Atoms in use have key inf; of the others the 2 m that correlate most with the residual.
        key = descent.abs()
        proxy, at = top_m(key, 2 * m)
        merged = torch.zeros_like(key).scatter_(1, at, proxy + 1).masked_fill_(a != 0, torch.inf)
        score, support = top_m(merged, 3 * m)
        new = _least_squares(gram, b, support, present=score > 0)
        new = _least_squares(gram, b, top_m(new, m)[1])
        half_xx = 0.5 * x.square().sum(1)
        worse = quadratic.value(half_xx, b, new, quadratic.descent(x, b, new)) > quadratic.value(
            half_xx, b, a, descent
        )
        return torch.where(worse[:, None], a, new)

    return _solve(x, rows, D, m, tol, max_iter, history, advance)


def _least_squares(
    gram: Tensor, b: Tensor, support: Tensor, present: Tensor | None = None
) -> Tensor:
    """argmin ||x - D z|| with z on ``support`` [B, s] (where ``present``), dense [B, p].

    Solved by Cholesky on the Gram matrix of the support; where that is singular (atoms that depend
    linearly on each other) by its pseudo-inverse, the solution of least norm.
    """
    A = gram[support[:, :, None], support[:, None, :]]
    right = b.gather(1, support)
    if present is not None:
        # Places that are not taken solve 1 z = 0.
        A = A * (present[:, :, None] & present[:, None, :])
        A = A + torch.diag_embed((~present).to(A.dtype))
        right = torch.where(present, right, 0.0)
    L, failed = torch.linalg.cholesky_ex(A)
    tiny = torch.diagonal(L, dim1=1, dim2=2).amin(1) <= 1e2 * torch.finfo(b.dtype).eps
    singular = (failed != 0) | tiny
    L = torch.where(
        singular[:, None, None], torch.eye(A.shape[1], dtype=A.dtype, device=A.device), L
    )
    z = torch.cholesky_solve(right[:, :, None], L)[..., 0]
    if singular.any():
        inverse = torch.linalg.pinv(A[singular].double(), hermitian=True)
        z[singular] = (inverse @ right[singular, :, None].double())[..., 0].to(z.dtype)
    return torch.zeros_like(b).scatter_(1, support, z)


def _checked(x, D, m, tol, max_iter, share):
    rows, D = steps.signals(x, D), D.detach()
    limit = "min(n, p)" if share == 1 else f"min(n, p) / {share}"
    m = checks.integer("m", m, 1, min(D.shape) // share, limit)
    return rows, D, m, steps.positive("tol", tol), checks.integer("max_iter", max_iter, 1)


def _solve(x, rows, D, m, tol, max_iter, history, advance) -> SolverResult:
    a, iterations, converged, objective = Loop(Quadratic(D), tol, max_iter, history).run(
        rows, None, advance, lambda a: a.new_zeros(len(a))
    )
    values, indices = top_m(a, m)
    lead = x.shape[:-1]
    return SolverResult(
        SparseCode(values.reshape(*lead, m), indices.reshape(*lead, m), D.shape[1]),
        iterations.reshape(lead),
        converged.reshape(lead),
        objective.reshape(len(objective), *lead),
    )
