"""The loop that all proximal solvers share: active set, convergence, objective, row blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows are solved in blocks that keep codes, correlations and the Gram matrix in cache.
ROWS = 1024
_CHECK_EVERY = 5


class Quadratic:
    """1/2 ||x - D a||^2 for rows x, with its gradient step by the cheaper of two forms."""

    def __init__(self, D: Tensor) -> None:
        n, p = D.shape
        self.D, self.Dt = D, D.T.contiguous()
        # Per sample p^2 with the Gram matrix, 2 n p through the residual.
        self.gram = D.T @ D if p <= 2 * n else None

    def correlations(self, x: Tensor) -> Tensor:
        return x @ self.D

    def descent(self, x: Tensor, b: Tensor, a: Tensor) -> Tensor:
        """D'(x - D a), the negative gradient, with b = D'x."""
        if self.gram is not None:
            return torch.addmm(b, a, self.gram, alpha=-1)
        return (x - a @ self.Dt) @ self.D

    def value(self, half_xx: Tensor, b: Tensor, a: Tensor, descent: Tensor) -> Tensor:
        """1/2 ||x - D a||^2 without another product: a'D'D a = a'(b - descent)."""
        return half_xx - 0.5 * ((a * b).sum(1) + (a * descent).sum(1))


class Loop:
    """Runs ``advance`` on blocks of rows until each row's code stands still."""

    def __init__(self, quadratic: Quadratic, tol: float, max_iter: int, history: bool) -> None:
        self.quadratic, self.tol, self.max_iter, self.history = quadratic, tol, max_iter, history

    def run(
        self,
        x: Tensor,
        start: Tensor | None,
        advance: Callable[..., Tensor],
        penalty: Callable[[Tensor], Tensor],
        new_state: Callable[[Tensor, Tensor], dict[str, Tensor]] = lambda b, a: {},
        settled: Callable[[dict[str, Tensor]], Tensor] | None = None,
        monotone: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            x: [B, n]. start: [B, p], None for zero.
            advance: (x, b, a, descent, state) -> next a; may change state's tensors by key.
            penalty: a -> [B], added to the quadratic.
            new_state: (b, a) -> per-row tensors that travel with the active set.
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
        b = q.correlations(x)
        half_xx = 0.5 * x.square().sum(1)
        state = new_state(b, a)
        slack = 64 * torch.finfo(x.dtype).eps
        full = x.new_zeros(rows)
        objectives = []
        descent = q.descent(x, b, a)
        value = q.value(half_xx, b, a, descent) + penalty(a)
        full.copy_(value)
        objectives.append(full.clone())
        for k in range(1, self.max_iter + 1):
            new = advance(x, b, a, descent, state)
            descent = q.descent(x, b, new)
            last = k == self.max_iter
            check = last or k % _CHECK_EVERY == 0
            new_value = value
            if check or self.history or monotone is not None:
                new_value = q.value(half_xx, b, new, descent) + penalty(new)
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
            leave = done | last
            if leave.any():
                out = active[leave]
                code[out], full[out] = a[leave], value[leave]
                iterations[out], converged[out] = k, done[leave]
                stay = ~leave
                active, x, b, a, descent, value, half_xx = (
                    t[stay] for t in (active, x, b, a, descent, value, half_xx)
                )
                for key in state:
                    state[key] = state[key][stay]
                if not len(active):
                    break
        if not self.history:
            objectives = [objectives[0], full.clone()]
        return code, iterations, converged, torch.stack(objectives)
