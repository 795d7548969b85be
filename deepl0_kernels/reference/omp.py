"""Orthogonal matching pursuit, batched over the rows."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024


def omp(x: Tensor, D: Tensor, m: int, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of the rows x [B, n] in the unit (or zero) atoms of D [n, p], by Batch-OMP.

    Returns:
        values [B, m], indices [B, m] ascending, number of atoms [B], objective [m + 1, B].
    """
    gram = D.T @ D
    blocks = [_block(x[i : i + _ROWS], D, gram, m, tol) for i in range(0, len(x), _ROWS)]
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
