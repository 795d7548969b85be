"""Iterative hard thresholding: the iterations that the encoders unroll."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._isolation import isolated
from ..backends import implementation
from ..ops import Plan, SparseCode, checks, keep_top_m, top_m
from ..reference.descent import Loop, Quadratic, half_squares, positive_part
from ..reference.iht import ROSE
from . import niht
from . import step as steps
from .fista import fista
from .precision import in_range
from .result import SolverResult


@isolated(False)
@in_range("lam", "step")
def iht(
    x: Tensor,
    D: Tensor,
    lam: float,
    *,
    step: str | float = "lipschitz",
    init: str | Tensor = "zero",
    tol: float = 1e-5,
    max_iter: int = 1000,
    history: bool = True,
    positive: bool = False,
    plan: Plan | None = None,
) -> SolverResult[Tensor]:
    """Descend ``1/2 ||x - D a||^2 + lam ||a||_0`` by ``a <- h(a + mu D'(x - D a))``.

    h keeps ``|u| >= sqrt(2 lam mu)``; with ``positive``, which is the problem over a >= 0, it keeps
    ``u >= sqrt(2 lam mu)``. The objective never rises; the limit is a local minimum that depends on
    ``init``.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype; any norm.
        lam: > 0.
        step: "lipschitz": mu = 0.99 / ||D||_2^2; "accelerated": the same with momentum, which a
            sample drops for an iteration where it would raise the objective (AIHT; two products an
            iteration); "normalized": the best step on the current support, shrunk until the
            objective falls (NIHT); or a number.
        init: "zero"; "l1": the solution of :func:`fista` for the same lam; or codes [..., p].
        tol: a sample has converged when its last step is at most ``tol ||a||``; it is then left
            alone.
        max_iter: iterations at most.
        history: keep the objective of every iteration.
        positive: nonnegative codes; of ``init`` the positive part is taken.
        plan: of :func:`deepl0_kernels.prepare` with this D, for many calls with few signals each:
            what is worked out of D alone is kept.

    Returns:
        :class:`SolverResult` with a dense code.

    Raises:
        ValueError: non-finite or mismatched arguments, lam or tol not > 0, an unknown step or init.
        TypeError: positive is not True or False.
        RuntimeError: the objective rose, which a step above 1 / ||D||_2^2 can cause.

    With a fixed step ("lipschitz" or a number) and k nonzeros min(2 k p, 2 (n k + n p)) flops a
    sample and iteration, all iterations in one native operator; at most 2 p^2. "normalized" and
    "accelerated" are loops in Python over PyTorch's dense products, 2 n p flops each, of which an
    iteration has two and one for each trial of the step (where 4 m <= p, "normalized" of
    :func:`iht_m` has one in all): they need fewer iterations, which cost more. Sources: Blumensath
    and Davies 2008, 2010 (NIHT); Blumensath 2012 (AIHT), with the momentum of Beck and Teboulle
    2009.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> result = dk.solvers.iht(torch.randn(8, 16), D, lam=0.1)
        >>> objective = result.objective  # [iterations + 1, 8]
        >>> bool((objective[-1] <= objective[0]).all())
        True
    """
    facts = steps.known(D, plan)
    rows, D = steps.signals(x, D, facts), D.detach()
    lam, tol = steps.weight("lam", lam), checks.positive("tol", tol)
    max_iter = checks.integer("max_iter", max_iter, 1)
    positive = checks.boolean("positive", positive)
    history = checks.boolean("history", history)
    rule = _rule(step, facts)
    start = _start(init, x, D, lam, tol, max_iter, positive, plan)
    if isinstance(rule, float):
        solve = implementation("iht_l0", rows)
        found = solve(rows, D, start, lam, rule, tol, max_iter, history, positive)
        return _result(x, *found)

    def select(u: Tensor, mu: Tensor) -> Tensor:
        size = u if positive else u.abs()
        return torch.where(size >= (2 * lam * mu).sqrt(), u, 0.0)

    def penalty(a: Tensor) -> Tensor:
        return lam * (a != 0).sum(1, dtype=a.dtype)

    loop = Loop(Quadratic(D), tol, max_iter, history)
    return _result(x, *rule(loop, rows, start, select, penalty))


@isolated(False)
@in_range("l1_lam", "step")
def iht_m(
    x: Tensor,
    D: Tensor,
    m: int,
    *,
    step: str | float = "lipschitz",
    init: str | Tensor | SparseCode = "zero",
    l1_lam: float = 0.1,
    tol: float = 1e-5,
    max_iter: int = 1000,
    history: bool = True,
    positive: bool = False,
    plan: Plan | None = None,
) -> SolverResult[SparseCode]:
    """Descend ``1/2 ||x - D a||^2`` s.t. ``||a||_0 <= m`` by ``a <- h_m(a + mu D'(x - D a))``.

    Args:
        m: 1 <= m <= p, nonzeros at most.
        init: "zero"; "l1": the m largest entries of the l1 solution for ``l1_lam``; or codes, of
            which the m largest entries are kept (of their positive part with ``positive``).
        l1_lam: penalty of the l1 start. Small enough that its solution has m nonzeros: otherwise
            the first step, not l1, chooses the rest. 0.1 suits signals of unit variance.
        positive: over a >= 0: h_m keeps the m largest of max(u, 0). Where fewer are above 0, the
            code has m entries all the same, the others 0.
        The other arguments, errors and costs are those of :func:`iht`.

    Returns:
        :class:`SolverResult` with a :class:`SparseCode`; the objective is without any penalty.

    Sources: Blumensath and Davies 2008, 2010 (NIHT).

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> result = dk.solvers.iht_m(torch.randn(8, 16), D, m=3)
        >>> result.code.indices.shape
        torch.Size([8, 3])
    """
    facts = steps.known(D, plan)
    rows, D = steps.signals(x, D, facts), D.detach()
    m = checks.integer("m", m, 1, D.shape[1], "p")
    tol, max_iter = checks.positive("tol", tol), checks.integer("max_iter", max_iter, 1)
    positive = checks.boolean("positive", positive)
    history = checks.boolean("history", history)
    rule = _rule(step, facts)
    if isinstance(init, SparseCode):
        init = init.to_dense()
    start = _start(init, x, D, steps.weight("l1_lam", l1_lam), tol, max_iter, positive, plan)
    if isinstance(rule, float):
        values, indices = (None, None) if start is None else top_m(start, m)
        solve = implementation("iht_top_m", rows)
        values, indices, *course = solve(
            rows, D, values, indices, m, rule, tol, max_iter, history, positive
        )
    else:
        loop = Loop(Quadratic(D), tol, max_iter, history)
        start = None if start is None else keep_top_m(start, m)
        if step == "normalized" and 4 * m <= D.shape[1]:  # dense products overtake from there on
            a, *course = niht.solve_top_m(facts.safe_step, loop, rows, start, m, positive)
        else:
            a, *course = rule(
                loop,
                rows,
                start,
                lambda u, mu: keep_top_m(positive_part(u) if positive else u, m),
                lambda a: a.new_zeros(len(a)),
            )
        values, indices = top_m(a, m)
    lead = x.shape[:-1]
    code = SparseCode(values.reshape(*lead, m), indices.reshape(*lead, m), D.shape[1])
    return _result(x, code, *course)


def _rule(step: str | float, facts: steps.Facts) -> float | Callable[..., tuple]:
    """The fixed step, or the loop that chooses one anew in every iteration."""
    if isinstance(step, str):
        checks.one_of("step", step, ("lipschitz", *_RULES))
        if step == "lipschitz":
            return facts.safe_step
        return partial(_RULES[step], facts.safe_step)
    return steps.weight("step", step)


def _start(
    init,
    x: Tensor,
    D: Tensor,
    lam: float,
    tol: float,
    max_iter: int,
    positive: bool,
    plan: Plan | None,
) -> Tensor | None:
    """The codes to start from as rows [B, p]; None for zero."""
    p = D.shape[1]
    if isinstance(init, str):
        checks.one_of("init", init, ("zero", "l1"))
        if init == "zero":
            return None
        l1 = fista(
            x, D, lam, tol=tol, max_iter=max_iter, history=False, positive=positive, plan=plan
        )
        return l1.dense.reshape(-1, p)
    return steps.codes("init", init, x, D, positive)


def _accelerated(
    mu: float,
    loop: Loop,
    rows: Tensor,
    start: Tensor | None,
    select: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loop with the safe step from a point that momentum has carried on."""
    quadratic = loop.quadratic
    column = rows.new_full((1, 1), mu)

    def advance(x, a, descent, state):
        # Momentum acts on points and on gradients alike, which are affine in a.
        w = state["beta"][:, None]
        y = a + w * (a - state["a"])
        new = select(y + mu * (descent + w * (descent - state["descent"])), column)
        residual = quadratic.residual(x, new)
        value = half_squares(residual) + penalty(new)
        uphill = value > half_squares(state["residual"]) + penalty(a)
        if uphill.any():
            new = torch.where(uphill[:, None], select(a + mu * descent, column), new)
            residual = quadratic.residual(x, new)
        t = torch.where(uphill, 1.0, state["t"])
        t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
        state.update(a=a, descent=descent, residual=residual, t=t_next, beta=(t - 1) / t_next)
        return new

    def new_state(residual, descent, a):
        one = a.new_ones(len(a))
        before = {"a": a, "descent": torch.zeros_like(a), "residual": residual}
        return {**before, "t": one, "beta": 0 * one}

    return loop.run(rows, start, advance, penalty, new_state, monotone=ROSE)


_RULES = {"normalized": niht.solve_l0, "accelerated": _accelerated}


def _result(x: Tensor, code, iterations, converged, objective) -> SolverResult[Any]:
    lead = x.shape[:-1]
    if isinstance(code, Tensor):
        code = code.reshape(*lead, code.shape[-1])
    return SolverResult(
        code,
        iterations.reshape(lead),
        converged.reshape(lead),
        objective.reshape(len(objective), *lead),
    )
