"""A step of row-sparse Adam: the operator behind :class:`deepl0_kernels.sae.SparseAdam`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import implementation
from . import registration

registration.define(
    "sparse_adam_",
    "(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, float lr, "
    "float beta1, float beta2, float eps, int t, bool unit_norm) -> ()",
    lambda *args: None,
)
registration.serve("sparse_adam_", reference.sparse_adam_, low=None)


@torch.no_grad()
def sparse_adam_(param: Tensor, grad: Tensor, *rest) -> None:
    """In place on [rows, n]; see the reference. Not checked."""
    if param.dtype in (torch.float32, torch.float64):
        implementation("sparse_adam_", param)(param, grad, *rest)
    else:  # of half types nobody measured anything
        reference.sparse_adam_(param, grad, *rest)
