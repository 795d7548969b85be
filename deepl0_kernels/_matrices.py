"""How matrices lie in memory, and which of them a stage uses: known to every backend alike."""

from __future__ import annotations

import torch
from torch import Tensor


def by_columns(t: Tensor) -> bool:
    """Whether the matrix is a transposed view of a contiguous one: so its gradient is, too."""
    rows, columns = t.shape[-2:]
    return t.stride(-2) == 1 and t.stride(-1) == rows and columns > 1


def gradient_of_matrix(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty gradient of the matrix ``t``: contiguous, or transposed like a transposed view."""
    if by_columns(t):
        return t.new_empty(t.mT.shape, dtype=dtype).mT
    return t.new_empty(t.shape, dtype=dtype)


def stage_matrix(S: Tensor, k: int) -> Tensor:
    """The matrix from stage k to stage k + 1 (k from 0): S is shared or one per stage."""
    return S[k] if S.dim() == 3 else S


def stage_theta(theta: Tensor, k: int) -> Tensor:
    """The threshold of stage k (k from 0): theta is shared or one row per stage."""
    return theta[k] if theta.dim() == 2 else theta
