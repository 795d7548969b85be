"""Normalised IHT: the step of every signal and iteration is chosen anew.

Blumensath and Davies 2010: the exact line search on the support, shortened until the change allows
it, never below the step that is always safe. They take the exact step where the support stays. Here
it is halved there, too: over coherent atoms steepest descent by halved steps comes nearer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import SparseCode, decode, top_m, unpool
from ..reference.descent import Loop
from ..reference.iht import ROSE

# The step is multiplied by _SHRINK until it is at most (1 - _C) of what the change allows.
_C, _SHRINK, _TRIALS = 0.01, 0.5, 60


def _longest_alone(D: Tensor) -> float:
    """The step of the longest atom: from 0 the support is what one atom alone would gain by."""
    return 1 / D.double().square().sum(0).max().item()


def _exact(g: Tensor, effect: Tensor, safe: float) -> Tensor:
    """The step [B, 1] that lowers ``||x - D a||^2`` most along g, for ``effect`` = D g."""
    energy = effect.square().sum(1)
    mu = torch.where(energy > 0, g.square().sum(1) / energy, safe)
    return mu.clamp(min=safe)[:, None]


def _too_long(mu: Tensor, safe: float, size: Tensor, moved: Tensor) -> Tensor:
    """Rows [B] whose step is longer than ``||change||^2 / ||D change||^2`` allows; ``moved`` is
    D change, ``size`` the first."""
    return (mu[:, 0] * moved.square().sum(1) > (1 - _C) * size) & (mu[:, 0] > safe)


def solve_l0(
    safe: float,
    loop: Loop,
    rows: Tensor,
    start: Tensor | None,
    select: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loop where ``select(u, mu)`` keeps what is large; all products are dense."""
    quadratic = loop.quadratic
    D = quadratic.D
    alone = _longest_alone(D)
    column = rows.new_full((1, 1), alone)

    def advance(x, a, descent, state):
        support = a != 0
        empty = ~support.any(1)
        support[empty] = select(alone * descent[empty], column) != 0
        g = descent * support
        mu = _exact(g, g @ D.T, safe)
        new = select(a + mu * descent, mu)
        residual = quadratic.residual(x, new)
        for _ in range(_TRIALS):
            size, moved = (new - a).square().sum(1), state["residual"] - residual
            too_long = _too_long(mu, safe, size, moved)
            if not too_long.any():
                break
            mu = torch.where(too_long[:, None], (_SHRINK * mu).clamp(min=safe), mu)
            new = torch.where(too_long[:, None], select(a + mu * descent, mu), new)
            residual = quadratic.residual(x, new)
        state["residual"] = residual
        return new

    def new_state(residual, descent, a):
        return {"residual": residual}

    return loop.run(rows, start, advance, penalty, new_state, monotone=ROSE)


def solve_top_m(
    safe: float, loop: Loop, rows: Tensor, start: Tensor | None, m: int, positive: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loop where m entries stay: of its products D'r alone is dense, the others gather m atoms.

    2 n p + 4 n m flops an iteration and signal, 2 n m more for each shorter step.
    """
    D, p = loop.quadratic.Dt.T, loop.quadratic.D.shape[1]
    alone = _longest_alone(D)

    def advance(x, a, descent, state):
        values, indices = state["values"], state["indices"]
        present = values != 0
        if (empty := ~present.any(1)).any():
            first, indices = top_m(alone * descent[empty], m, positive=positive), indices.clone()
            indices[empty], present[empty] = first[1], first[0] != 0
        g = descent.gather(1, indices) * present
        mu = _exact(g, decode(SparseCode(g, indices, p), D), safe)
        code = top_m(torch.addcmul(a, mu, descent), m, positive=positive)
        residual = x - decode(SparseCode(*code, p), D)
        for _ in range(_TRIALS):
            size = _change(a, values, indices, *code)
            too_long = _too_long(mu, safe, size, state["residual"] - residual)
            if not too_long.any():
                break
            chosen = too_long[:, None]
            mu = torch.where(chosen, (_SHRINK * mu).clamp(min=safe), mu)
            shorter = top_m(torch.addcmul(a, mu, descent), m, positive=positive)
            code = (
                torch.where(chosen, shorter[0], code[0]),
                torch.where(chosen, shorter[1], code[1]),
            )
            residual = x - decode(SparseCode(*code, p), D)
        state["values"], state["indices"] = code
        state["residual"] = residual
        return unpool(*code, p)

    def new_state(residual, descent, a):
        values, indices = top_m(a, m)
        return {"residual": residual, "values": values, "indices": indices}

    return loop.run(rows, start, advance, lambda a: a.new_zeros(len(a)), new_state, monotone=ROSE)


def _change(a: Tensor, old: Tensor, at: Tensor, new: Tensor, to: Tensor) -> Tensor:
    """``||new - old||^2`` [B] of codes [B, m], whose indices ``at`` and ``to`` ascend; a is the old
    one, dense."""
    there = torch.searchsorted(to, at).clamp(max=to.shape[1] - 1)
    lost = torch.where(to.gather(1, there) == at, 0.0, old)
    return (new - a.gather(1, to)).square().sum(1) + lost.square().sum(1)
