"""Least squares on given supports."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .least_squares import floor as least_distance
from .least_squares import roots, solve


class Supports(NamedTuple):
    """Atoms [B, m, n] of rows' supports, the rows x [B, n], Gram matrices [B, m, m] of unit atoms,
    norms [B, m], and of the places [B, m] which have an atom, and which are NaN; in float64."""

    atoms: Tensor
    x: Tensor
    gram: Tensor
    norms: Tensor
    present: Tensor
    spoilt: Tensor

    @property
    def products(self) -> Tensor:
        """D_S'x [B, m, 1]."""
        return self.atoms @ self.x[:, :, None]

    def solve(self, right: Tensor, floor: float, branches: bool = True) -> Tensor:
        """``(D_S'D_S)^-1`` times right sides [B, m, k]."""
        size = self.norms[:, :, None]
        z = solve(self.gram, right / size, self.present, floor, branches)
        return z / size


def supports(x: Tensor, D: Tensor, indices: Tensor) -> Supports:
    """What the systems of rows x [B, n] are formed of. A row with inf or NaN, in x or in an atom of
    its support, has no atoms here: all of its values are NaN."""
    there = indices >= 0
    atoms = torch.where(there[:, :, None], D.t()[indices.clamp_min(0)], 0.0).double()
    x = x.double()
    gram = atoms @ atoms.mT
    size = roots(torch.diagonal(gram, dim1=1, dim2=2))
    finite = size.isfinite().all(1) & x.detach().isfinite().all(1)
    gram = gram / (size[:, :, None] * size[:, None, :])
    x = torch.where(finite[:, None], x, 0.0)
    spoilt = there & ~finite[:, None]
    return Supports(atoms, x, gram, size, there & finite[:, None], spoilt)


def refit(x: Tensor, D: Tensor, indices: Tensor) -> Tensor:
    """The values v [B, m] that minimise ``||x - D_S v||`` on the support S of each row.

    Args:
        x: [B, n]. D: [n, p], same dtype.
        indices: [B, m], a row's are distinct; -1 for no atom, whose value is 0.
    """
    s = supports(x, D, indices)
    v = s.solve(s.products, least_distance(D.dtype), branches=False)[..., 0]
    return torch.where(s.spoilt, torch.nan, v).to(x.dtype)
