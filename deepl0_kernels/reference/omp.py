"""Orthogonal matching pursuit, batched over the rows."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024


def omp(
    x: Tensor, D: Tensor, m: int, tol: float, positive: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of the rows x [B, n] in the unit (or zero) atoms of D [n, p], by Batch-OMP.

    ``positive``: codes >= 0. The atom of largest positive correlation is added, and nonnegative
    least squares on all atoms chosen so far are the next code.

    Returns:
        values [B, m], indices [B, m] ascending, number of atoms [B], objective [m + 1, B].
    """
    gram = D.T @ D
    pursue = _nonnegative_block if positive else _block
    blocks = [pursue(x[i : i + _ROWS], D, gram, m, tol) for i in range(0, len(x), _ROWS)]
    if not blocks:
        empty = torch.empty(0, m, dtype=torch.int64, device=x.device)
        return x.new_empty(0, m), empty, empty[:, 0], x.new_empty(m + 1, 0)
    values, indices, count = (torch.cat([b[i] for b in blocks]) for i in range(3))
    return values, indices, count, torch.cat([b[3] for b in blocks], 1)


def _block(x: Tensor, D: Tensor, gram: Tensor, m: int, tol: float):
    rows, p = len(x), D.shape[1]
    b = x @ D
    xx = x.square().sum(1)
    floor = tol * xx.sqrt()
    L = torch.eye(m, dtype=x.dtype, device=x.device).repeat(rows, 1, 1)
    support = torch.zeros(rows, m, dtype=torch.int64, device=x.device)
    taken = torch.zeros(rows, p, dtype=torch.bool, device=x.device)
    coefficients = x.new_zeros(rows, m)
    dense = x.new_zeros(rows, p)
    count = torch.zeros(rows, dtype=torch.int64, device=x.device)
    alive = torch.ones(rows, dtype=torch.bool, device=x.device)
    objective = [0.5 * xx]
    y = x.new_zeros(rows, m)  # L y = b on the support
    for k in range(m):
        residual = (b - dense @ gram).abs().masked_fill_(taken, -1.0)
        best, atom = residual.max(1)
        # A finished row still takes a distinct place, with value 0: supports have m entries.
        atom = torch.where(alive, atom, (~taken).byte().argmax(1))
        cross = gram[atom].gather(1, support[:, :k])
        if k:
            w = torch.linalg.solve_triangular(L[:, :k, :k], cross[:, :, None], upper=False)[..., 0]
        else:
            w = cross
        pivot = 1 - w.square().sum(1)
        ok = alive & (best > floor) & (pivot > 1e2 * torch.finfo(x.dtype).eps)
        atom = torch.where(ok, atom, (~taken).byte().argmax(1))
        alive = ok
        support[:, k] = atom
        taken.scatter_(1, atom[:, None], True)
        count += ok
        root = pivot.clamp_min(1e-30).sqrt()
        L[:, k, :k] = torch.where(ok[:, None], w, torch.zeros_like(w))
        L[:, k, k] = torch.where(ok, root, torch.ones_like(root))
        right = b.gather(1, atom[:, None])[:, 0] - (w * y[:, :k]).sum(1)
        y[:, k] = torch.where(ok, right / root, torch.zeros_like(right))
        solved = torch.linalg.solve_triangular(
            L[:, : k + 1, : k + 1].mT, y[:, : k + 1, None], upper=True
        )[..., 0]
        coefficients[:, : k + 1] = solved
        dense.zero_().scatter_(1, support[:, : k + 1], solved)
        objective.append(0.5 * (xx - y.square().sum(1)).clamp_min(0))
        if not alive.any():
            # Fill the places that are left with the lowest free indices.
            for rest in range(k + 1, m):
                atom = (~taken).byte().argmax(1)
                support[:, rest] = atom
                taken.scatter_(1, atom[:, None], True)
                objective.append(objective[-1])
            break
    indices, order = support.sort(1)
    return coefficients.gather(1, order), indices, count, torch.stack(objective)


def _nonnegative_block(x: Tensor, D: Tensor, gram: Tensor, m: int, tol: float):
    rows, p = len(x), D.shape[1]
    b = x @ D
    xx = x.square().sum(1)
    floor = tol * xx.sqrt()
    support = torch.zeros(rows, m, dtype=torch.int64, device=x.device)
    taken = torch.zeros(rows, p, dtype=torch.bool, device=x.device)
    inside, barred = (torch.zeros_like(support, dtype=torch.bool) for _ in range(2))
    a = x.new_zeros(rows, m)
    count = torch.zeros(rows, dtype=torch.int64, device=x.device)
    alive = torch.ones(rows, dtype=torch.bool, device=x.device)
    objective = [0.5 * xx]
    for k in range(m):
        dense = torch.zeros_like(b).scatter_(1, support[:, :k], a[:, :k])
        best, atom = (b - dense @ gram).masked_fill_(taken, -1.0).max(1)
        # A finished row still takes a distinct place, with value 0: supports have m entries.
        free = (~taken).byte().argmax(1)
        support[:, k] = torch.where(alive & (best > floor), atom, free)
        now = support[:, : k + 1]
        A = gram[now[:, :, None], now[:, None, :]]
        alive &= (best > floor) & _independent(A, inside[:, : k + 1], torch.full_like(count, k))
        support[:, k] = torch.where(alive, support[:, k], free)
        taken.scatter_(1, support[:, k : k + 1], True)
        count += alive
        inside[:, k] = alive
        rows_now = alive.nonzero()[:, 0]
        parts = (A, b.gather(1, now), a[:, : k + 1], inside[:, : k + 1], barred[:, : k + 1], floor)
        found = _nonnegative_least_squares(*(part[rows_now] for part in parts))
        for whole, part in zip((a, inside, barred), found, strict=True):
            whole[rows_now, : k + 1] = part
        dense = torch.zeros_like(b).scatter_(1, now, a[:, : k + 1])
        objective.append(0.5 * (xx - (2 * b - dense @ gram).mul_(dense).sum(1)).clamp_min(0))
    indices, order = support.sort(1)
    return a.gather(1, order), indices, count, torch.stack(objective)


def _nonnegative_least_squares(
    A: Tensor, c: Tensor, a: Tensor, inside: Tensor, barred: Tensor, floor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise 1/2 a'A a - c'a over a >= 0 [B, k] by the active set of Lawson and Hanson (1974).

    Args:
        a: least squares on ``inside`` but for the atom that has just come in, whose a is 0.
        inside: where a may be positive.
        barred: atoms that dependence or rounding keeps out for good.
        floor: the correlation c - A a, [B], that is worth an atom.

    Returns:
        a, inside, barred.
    """
    more = torch.full_like(floor, 2 * a.shape[1], dtype=torch.int64)
    while len(a):
        z = _least_squares(A, c, inside)
        low = inside & ~(z > 0)
        short = low.any(1)
        # From a towards z until the first coefficients are 0.
        length = torch.where(low, torch.where(a > 0, a / (a - z), 0.0), torch.inf)
        step = length.amin(1, keepdim=True).clamp_max(1)
        leaves = low & ~(length > step)
        barred = barred | (leaves & ~(a > 0))  # has just come in: rounding alone speaks for it
        inside = inside & ~leaves
        a = torch.where(inside, torch.where(short[:, None], a + step * (z - a), z), 0.0)
        # Where all are positive, the best of the others comes back.
        correlation = c - (A @ a[:, :, None])[..., 0]
        best, at = correlation.masked_fill(inside | barred, -torch.inf).max(1)
        back = ~short & (best > floor)
        if not (short | back).any():
            break
        good = back & (more > 0) & _independent(A, inside, at)
        inside = inside | torch.zeros_like(inside).scatter_(1, at[:, None], good[:, None])
        barred = barred | torch.zeros_like(inside).scatter_(1, at[:, None], (back & ~good)[:, None])
        more = more - good.long()
    return a, inside, barred


def _least_squares(A: Tensor, c: Tensor, inside: Tensor) -> Tensor:
    right = torch.where(inside, c, 0.0)[:, :, None]
    return torch.cholesky_solve(right, _factor(A, inside))[..., 0]


def _independent(A: Tensor, inside: Tensor, at: Tensor) -> Tensor:
    """Whether the atoms at [B], of norm 1, are far enough from the span of those inside."""
    cross = A.gather(2, at[:, None, None].expand(-1, A.shape[1], 1))
    cross = torch.where(inside[:, :, None], cross, 0.0)
    w = torch.linalg.solve_triangular(_factor(A, inside), cross, upper=False)[..., 0]
    return 1 - w.square().sum(1) > 1e2 * torch.finfo(A.dtype).eps


def _factor(A: Tensor, inside: Tensor) -> Tensor:
    """The Cholesky factor of the rows and columns inside; those of the identity elsewhere."""
    A = torch.where(inside[:, :, None] & inside[:, None, :], A, 0.0)
    return torch.linalg.cholesky_ex(A + torch.diag_embed((~inside).to(A.dtype)))[0]
