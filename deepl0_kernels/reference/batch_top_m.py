"""Selection over a whole batch (BatchTopK): of B rows the B m entries of largest magnitude.

Contract: that of :mod:`.top_m` with the batch, row after row, in the place of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .top_m import top_m


def batch_top_m(u: Tensor, m: int, positive: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The B m entries of largest |u| of u [..., p], B rows: values [B m], columns [B m], ascending
    in each row, and where the entries of each row begin [B + 1]."""
    p, rows = u.shape[-1], math.prod(u.shape[:-1])
    values, at = top_m(u.reshape(-1), rows * m, positive)
    offsets = torch.searchsorted(at, p * torch.arange(rows + 1, device=u.device))
    return values, at % max(p, 1), offsets
