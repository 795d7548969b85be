"""The result of a sparse encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .top_m import unpool


class SparseCode(NamedTuple):
    """A batch of m-sparse codes of length ``size``.

    Attributes:
        values: [..., m] floating.
        indices: [..., m] int64, ascending within a row.
        size: code length p.

    A NamedTuple, so it passes through ``torch.compile``, ``torch.export`` and pytrees.
    """

    values: Tensor
    indices: Tensor
    size: int

    def to_dense(self) -> Tensor:
        """Dense code [..., size], differentiable in ``values``; :func:`unpool`."""
        return unpool(self.values, self.indices, self.size)

    def to_csr(self) -> Tensor:
        """``torch.sparse_csr`` matrix [B, size] of a code of one or two dimensions. O(B m).

        Raises:
            ValueError: a code of more dimensions.
        """
        if self.values.dim() > 2:
            raise ValueError(f"to_csr needs a code [B, m] or [m], got {tuple(self.values.shape)}")
        values, indices = torch.atleast_2d(self.values), torch.atleast_2d(self.indices)
        batch, m = values.shape
        row_starts = m * torch.arange(batch + 1, device=values.device)
        return torch.sparse_csr_tensor(
            row_starts,
            indices.reshape(-1),
            values.reshape(-1),
            size=(batch, self.size),
            check_invariants=True,
        )
