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


# What a block of the CUDA kernel holds: csrc/cuda/omp.h.
_MOST_ATOMS, _MOST_CHOSEN = 16384, 128


def omp(
    x: Tensor, D: Tensor, m: int, tol: float, positive: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of rows x in unit atoms D; see the reference. Not differentiable, not checked."""
    beyond = None
    if D.shape[1] > _MOST_ATOMS or m > _MOST_CHOSEN:
        beyond = f"the GPU kernel takes p <= {_MOST_ATOMS} and m <= {_MOST_CHOSEN}"
    return implementation("omp", x, beyond)(x, D, m, tol, positive)
