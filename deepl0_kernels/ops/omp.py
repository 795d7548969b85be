"""Orthogonal matching pursuit: the operator behind :func:`deepl0_kernels.solvers.omp`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import implementation
from . import registration

registration.define(
    "omp",
    "(Tensor x, Tensor D, SymInt m, float tol, bool positive=False)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda x, D, m, tol, positive=False: (
        x.new_empty((x.shape[0], m)),
        x.new_empty((x.shape[0], m), dtype=torch.int64),
        x.new_empty((x.shape[0],), dtype=torch.int64),
        x.new_empty((m + 1, x.shape[0])),
    ),
)
registration.differentiate("omp")
registration.serve("omp", reference.omp)
registration.vmap_rows("omp", rows=(0,), batch_dims=(0, 0, 0, 1))


def omp(
    x: Tensor, D: Tensor, m: int, tol: float, positive: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of rows x in unit atoms D; see the reference. Not differentiable, not checked."""
    return implementation("omp", x)(x, D, m, tol, positive)
