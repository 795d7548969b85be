"""Least squares on given supports, by the rank that the data have: normal equations in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import accumulation_dtype

# Numbers of the systems that are formed at a time: on a CPU they stay in cache.
_AT_ONCE, _AT_ONCE_ELSEWHERE = 2**18, 2**24


def floor(dtype: torch.dtype) -> float:
    """Squared distance from the span of others up to which a unit atom depends on them."""
    return 100 * torch.finfo(accumulation_dtype(dtype)).eps


def norms(atoms: Tensor, dim: int) -> Tensor:
    """Norms of atoms that lie along ``dim``, 1 of a zero atom; in float64, constants."""
    return roots(atoms.detach().double().square().sum(dim))


def roots(squares: Tensor) -> Tensor:
    """Norms of squared norms, 1 of a zero atom; constants."""
    size = squares.detach().sqrt()
    return torch.where(size == 0, 1.0, size)


def least_squares(gram: Tensor, right: Tensor, support: Tensor, floor: float) -> Tensor:
    """``G[S, S]^-1 right`` for the support S of each row, by :func:`solve`.

    Args:
        gram: G [p, p] of unit (or zero) atoms, float64. right: [B, s], float64.
        support: [B, s], int64: places in [0, p); -1 where there is no atom, whose value is 0.
    """
    at_once = _AT_ONCE if gram.is_cpu else _AT_ONCE_ELSEWHERE
    count = max(1, at_once // max(1, support.shape[1] ** 2))
    if len(support) > count:
        parts = zip(right.split(count), support.split(count), strict=True)
        return torch.cat([least_squares(gram, of, at, floor) for of, at in parts])
    present = support >= 0
    support = torch.where(support == -1, 0, support)
    A = gram[support[:, :, None], support[:, None, :]]
    return solve(A, right[:, :, None], present, floor)[..., 0]


def solve(A: Tensor, right: Tensor, present: Tensor, floor: float, branches: bool = True) -> Tensor:
    """``A^-1 right`` on the atoms that are ``present`` and independent, 0 on the others.

    By Cholesky. An atom whose squared distance from the span of those before it is at most
    ``floor`` depends on them: where there is one, the factorisation is repeated with the farthest
    atom first. Differentiable in A and ``right``, any number of times, as long as the same atoms
    are independent.

    Args:
        A: Gram matrices of unit (or zero) atoms, [B, s, s], float64. right: [B, s, k].
        present: [B, s], bool.
        branches: repeat it only for the systems that need it. Without, all of it is formed for
            every system, which torch.func maps over and torch.compile traces.
    """
    z, singular = _solve(A, right, present, floor, branches)
    if not branches:
        again = _farthest_first(A, right, present, floor, branches)
        return torch.where(singular[:, None, None], again, z)
    if singular.any():
        again = _farthest_first(A[singular], right[singular], present[singular], floor, branches)
        z = z.index_put((singular,), again)
    return z


def _solve(
    A: Tensor, right: Tensor, present: Tensor, floor: float, branches: bool
) -> tuple[Tensor, Tensor]:
    """The solution on the places that are ``present``, 0 on the others; which are singular."""
    if A.shape[1] == 0:
        return torch.zeros_like(right), present.any(1)
    A = torch.where(present[:, :, None] & present[:, None, :], A, 0.0)
    A = A + torch.diag_embed((~present).double())
    right = torch.where(present[:, :, None], right, 0.0)
    L, failed = torch.linalg.cholesky_ex(A)
    distance = torch.diagonal(L.detach(), dim1=1, dim2=2).square().amin(1)
    singular = (failed != 0) | ~(distance > floor)
    if not branches or singular.any():  # what is left is to be differentiated
        eye = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
        L = torch.linalg.cholesky_ex(torch.where(singular[:, None, None], eye, A))[0]
    return torch.cholesky_solve(right, L), singular


def _farthest_first(
    A: Tensor, right: Tensor, present: Tensor, floor: float, branches: bool
) -> Tensor:
    """The solution on the independent atoms, found in the order of their distance."""
    order, independent = _pivoted(A.detach(), present, floor)
    A = A.gather(1, order[:, :, None].expand_as(A))
    A = A.gather(2, order[:, None, :].expand_as(A))
    columns = order[:, :, None].expand_as(right)
    solved, _ = _solve(A, right.gather(1, columns), independent, floor, branches)
    return torch.zeros_like(solved).scatter(1, columns, solved)


def _pivoted(A: Tensor, present: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The order [B, s] of the farthest atom first, and which of it are independent."""
    distance = torch.where(present, torch.diagonal(A, dim1=1, dim2=2), -1.0)
    L = torch.zeros_like(A)[:, :, :0]
    order, independent = [], []
    for _ in range(A.shape[1]):
        pivot, at = distance.max(1, keepdim=True)
        order.append(at)
        independent.append(pivot > floor)
        row = L.gather(1, at[:, :, None].expand(-1, -1, L.shape[2]))
        column = A.gather(1, at[:, :, None].expand(-1, -1, A.shape[2]))[:, 0]
        column = (column - (L @ row.mT)[..., 0]) / pivot.clamp_min(floor).sqrt()
        L = torch.cat((L, torch.where(independent[-1], column, 0.0)[:, :, None]), 2)
        # (All that were taken: an atom of NaN has NaN again.)
        distance = (distance - L[:, :, -1].square()).scatter(1, torch.cat(order, 1), -torch.inf)
    if not order:
        return torch.zeros_like(present, dtype=torch.int64), present
    return torch.cat(order, 1), torch.cat(independent, 1)
