"""Orthogonal matching pursuit, batched."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import SparseCode, checks
from . import step as steps
from .result import SolverResult

_ROWS = 1024


def omp(x: Tensor, D: Tensor, m: int, *, tol: float = 1e-6) -> SolverResult:
    """Greedy m-sparse codes: add the atom that correlates most with the residual, refit, repeat.

    Atoms compete at unit norm, whatever their norm in D; the values belong to D as given.

    Args:
        x: [..., n], float32 or float64. D: [n, p], same dtype.
        m: 1 <= m <= min(n, p), atoms at most.
        tol: a sample stops early when no atom's correlation exceeds ``tol ||x||``, or the next one
            depends linearly on those it has; its entries left over are zeros.

    Returns:
        :class:`SolverResult` with a :class:`SparseCode` of m entries, ascending; ``iterations``
        counts the atoms, ``converged`` says that m atoms were found or none was left to add;
        ``objective`` is 1/2 ||x - D a||^2 with 0, 1, .., m atoms.

    Raises:
        ValueError: non-finite or mismatched x or D, m or tol out of range.

    O(m p + m^2) a sample and atom after p^2 n once: Cholesky on the Gram matrix (Rubinstein,
    Zibulevsky, Elad 2008).
    """
    rows = steps.signals(x, D)
    D = D.detach()
    n, p = D.shape
    m = checks.integer("m", m, 1, min(n, p), "min(n, p)")
    tol = steps.positive("tol", tol)
    norms = D.norm(dim=0)
    unit = D / norms.clamp_min(torch.finfo(D.dtype).tiny)
    gram = unit.T @ unit
    blocks = [_block(rows[i : i + _ROWS], unit, gram, m, tol) for i in range(0, len(rows), _ROWS)]
    if blocks:
        values, indices, count = (torch.cat([b[i] for b in blocks]) for i in range(3))
        objective = torch.cat([b[3] for b in blocks], 1)
    else:
        values, indices = rows.new_empty(0, m), torch.empty(0, m, dtype=torch.int64)
        count, objective = torch.empty(0, dtype=torch.int64), rows.new_empty(m + 1, 0)
    values = torch.where(values != 0, values / norms[indices], values)
    lead = x.shape[:-1]
    return SolverResult(
        SparseCode(values.reshape(*lead, m), indices.reshape(*lead, m), p),
        count.reshape(lead),
        torch.ones_like(count, dtype=torch.bool).reshape(lead),
        objective.reshape(m + 1, *lead),
    )


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
