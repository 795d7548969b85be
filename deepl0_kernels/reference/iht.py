"""Iterative hard thresholding with a fixed step: a <- h(a + step D'(x - D a))."""

from __future__ import annotations

import torch
from torch import Tensor

from . import thresholds
from .descent import Loop, Quadratic, check_step, positive_part
from .top_m import top_m, unpool

ROSE = (
    "the objective rose: the step is too large for D, or the estimate of ||D||_2 too small; "
    "give a smaller step"
)


def iht_top_m(
    x: Tensor,
    D: Tensor,
    values: Tensor | None,
    indices: Tensor | None,
    m: int,
    step: float,
    tol: float,
    max_iter: int,
    history: bool,
    positive: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values and indices [B, m], iterations and converged [B], objective [T + 1, B].

    ``positive``: over codes >= 0, from a start that is, too; what is selected is max(u, 0).
    """
    check_step(step, x)
    start = None
    if values is not None and indices is not None:
        start = unpool(values, indices, D.shape[1])
    a, iterations, converged, objective = Loop(Quadratic(D), tol, max_iter, history).run(
        x,
        start,
        lambda x, a, descent, state: unpool(
            *top_m(_moved(a, descent, step, positive), m), D.shape[1]
        ),
        lambda a: a.new_zeros(len(a)),
        monotone=ROSE,
    )
    return (*top_m(a, m), iterations, converged, objective)


def iht_l0(
    x: Tensor,
    D: Tensor,
    start: Tensor | None,
    lam: float,
    step: float,
    tol: float,
    max_iter: int,
    history: bool,
    positive: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [B, p], iterations and converged [B], objective [T + 1, B] with lam a nonzero.

    ``positive``: over codes >= 0, from a start that is, too; what is kept is u >= theta.
    """
    check_step(step, x)
    theta = x.new_tensor((2 * lam * step) ** 0.5)
    return Loop(Quadratic(D), tol, max_iter, history).run(
        x,
        start,
        lambda x, a, descent, state: thresholds.apply(
            _moved(a, descent, step, positive), theta, 0.0, "hard"
        ),
        lambda a: lam * (a != 0).sum(1, dtype=a.dtype),
        monotone=ROSE,
    )


def _moved(a: Tensor, descent: Tensor, step: float, positive: bool) -> Tensor:
    u = torch.add(a, descent, alpha=step)
    return positive_part(u) if positive else u
