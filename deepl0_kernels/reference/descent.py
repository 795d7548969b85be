"""The loop that all proximal solvers share: active set, convergence, objective, row blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows are solved in blocks that keep codes, correlations and the Gram matrix in cache.
ROWS = 1024
_CHECK_EVERY = 5


def half_squares(rows: Tensor) -> Tensor:
    """1/2 ||.||^2 of each row."""
    return 0.5 * rows.square().sum(1)


def positive_part(u: Tensor) -> Tensor:
    """max(u, 0): NaN stays, and -0.0 becomes 0.0."""
    return torch.where(u <= 0, 0.0, u)


def check_step(step: float, x: Tensor) -> None:
    """A step that x's dtype cannot hold makes NaN of every zero."""
    if not 0 < step <= torch.finfo(x.dtype).max:
        raise RuntimeError(f"step must be > 0 and within the range of {x.dtype}, got {step}")


class Quadratic:
    """1/2 ||x - D a||^2 for rows x. Value and gradient come from the residual: nothing cancels."""

    def __init__(self, D: Tensor) -> None:
        self.D, self.Dt = D, D.T.contiguous()

    def residual(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.addmm(x, a, self.Dt, alpha=-1)

    def descent(self, residual: Tensor) -> Tensor:
        """D'(x - D a), the negative gradient."""
        return residual @ self.D


class Loop:
    """Runs ``advance`` on blocks of rows until each row's code stands still."""

    def __init__(
        self,
        quadratic: Quadratic,
        tol: float,
        max_iter: int,
        history: bool,
        check_every: int = _CHECK_EVERY,
    ) -> None:
        self.quadratic, self.tol, self.max_iter, self.history = quadratic, tol, max_iter, history
        self.check_every = check_every

    def run(
        self,
        x: Tensor,
        start: Tensor | None,
        advance: Callable[..., Tensor],
        penalty: Callable[[Tensor], Tensor],
        new_state: Callable[..., dict[str, Tensor]] = lambda residual, descent, a: {},
        settled: Callable[[dict[str, Tensor]], Tensor] | None = None,
        monotone: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            x: [B, n]. start: [B, p], None for zero.
            advance: (x, a, descent, state) -> next a; may change state's tensors by key. A row of
                which it sets state["stuck"] [B] ends there, not converged. state["residual"],
                where there is one, is that of what it returns.
            penalty: a -> [B], added to the quadratic.
            new_state: (residual, descent, a) -> per-row tensors that travel with the active set.
            settled: state -> [B], rows that may converge; None for all.
            monotone: text of the error for an objective that rises; None where it may.
        """
        if start is None:
            start = x.new_zeros(len(x), self.quadratic.D.shape[1])
        rules = advance, penalty, new_state, settled, monotone
        parts = [
            self._block(x[i : i + ROWS], start[i : i + ROWS], *rules)
            for i in range(0, len(x), ROWS)
        ]
        if not parts:
            empty = x.new_empty(0)
            objective = x.new_empty((1 if self.history else 2, 0))
            return start.clone(), empty.long(), empty.bool(), objective
        longest = max(part[3].shape[0] for part in parts)
        objective = torch.cat(
            [torch.cat([o, o[-1:].expand(longest - len(o), -1)]) for *_, o in parts], 1
        )
        code, iterations, converged = (torch.cat([part[i] for part in parts]) for i in range(3))
        return code, iterations, converged, objective

    def _block(self, x, a, advance, penalty, new_state, settled, monotone):
        q = self.quadratic
        rows = len(x)
        code = a.clone()
        iterations = torch.zeros(rows, dtype=torch.int64, device=x.device)
        converged = torch.zeros(rows, dtype=torch.bool, device=x.device)
        active = torch.arange(rows, device=x.device)
        half_xx = half_squares(x)
        slack = 64 * torch.finfo(x.dtype).eps
        full = x.new_zeros(rows)
        objectives = []
        residual = q.residual(x, a)
        descent = q.descent(residual)
        state = new_state(residual, descent, a)
        value = half_squares(residual) + penalty(a)
        full.copy_(value)
        objectives.append(full.clone())
        for k in range(1, self.max_iter + 1):
            new = advance(x, a, descent, state)
            residual = state["residual"] if "residual" in state else q.residual(x, new)
            descent = q.descent(residual)
            last = k == self.max_iter
            check = last or k % self.check_every == 0
            new_value = value
            if check or self.history or monotone is not None:
                new_value = half_squares(residual) + penalty(new)
            if monotone is not None:
                rise = new_value - value
                # Rounding grows with the terms that cancel, not with their difference.
                worst = (rise - slack * (half_xx + value.abs())).max()
                if not worst <= 0:
                    raise RuntimeError(f"{monotone} (iteration {k}, rise {rise.max().item():.3g})")
            moved = (new - a).norm(dim=1) if check else None
            a, value = new, new_value
            if self.history:
                full[active] = value
                objectives.append(full.clone())
            if moved is None:
                continue
            done = moved <= self.tol * a.norm(dim=1)
            if settled is not None:
                done &= settled(state)
            if (stuck := state.get("stuck")) is not None:
                done &= ~stuck
                leave = done | stuck | last
            else:
                leave = done | last
            if leave.any():
                out = active[leave]
                code[out], full[out] = a[leave], value[leave]
                iterations[out], converged[out] = k, done[leave]
                stay = ~leave
                active, x, a, descent, value, half_xx = (
                    t[stay] for t in (active, x, a, descent, value, half_xx)
                )
                for key in state:
                    state[key] = state[key][stay]
                if not len(active):
                    break
        if not self.history:
            objectives = [objectives[0], full.clone()]
        return code, iterations, converged, torch.stack(objectives)
