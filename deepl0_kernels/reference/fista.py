"""l1: the proximal method with momentum, restarts and a falling penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from . import thresholds
from .descent import Loop, Quadratic, check_step, positive_part

# The penalty falls by this factor from the largest correlation to lam: codes are sparse on the way.
_FALL = 0.8


def fista(
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
    """From ``start`` [B, p], or from 0: codes [B, p], iterations and converged [B], objective
    [T + 1, B] with lam ||a||_1. ``positive``: over codes >= 0, from a start that is, too."""
    check_step(step, x)
    lowest = x.new_tensor(step * lam)

    def advance(x, a, descent, state):
        # Momentum acts on points and on gradients alike, which are affine in a.
        w = state["beta"][:, None]
        y = a + w * (a - state["a"])
        slope = descent + w * (descent - state["descent"])
        fallen = _FALL * state["theta"]
        theta = torch.where(fallen > lowest, fallen, lowest)  # NaN, of operands or overflow: lowest
        u = y + step * slope
        if positive:
            new = positive_part(u - theta[:, None])
        else:
            new = thresholds.apply(u, theta[:, None], 0.0, "soft")
        uphill = ((y - new) * (new - a)).sum(1) > 0
        t = torch.where(uphill, 1.0, state["t"])
        t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
        state.update(
            a=a,
            descent=descent,
            t=t_next,
            beta=torch.where(uphill, 0.0, (t - 1) / t_next),
            theta=theta,
        )
        return new

    def new_state(residual, descent, a):
        one = a.new_ones(len(a))
        theta = lowest * one
        if start is None:
            # descent is D'x at 0, of which NaN does not count. The padding serves p = 0.
            size = descent if positive else descent.abs()
            most = torch.nn.functional.pad(size, (0, 1)).nan_to_num(0.0, torch.inf).amax(1)
            theta = step * most
        return {"a": a, "descent": torch.zeros_like(a), "t": one, "beta": 0 * one, "theta": theta}

    return Loop(Quadratic(D), tol, max_iter, history).run(
        x,
        start,
        advance,
        lambda a: lam * a.abs().sum(1),
        new_state,
        lambda state: state["theta"] == lowest,
    )
