"""x_hat = D a for a sparse code a."""

from __future__ import annotations

from torch import Tensor

from .precision import accumulation_dtype
from .top_m import unpool


def decode(values: Tensor, indices: Tensor, D: Tensor) -> Tensor:
    """D [n, p] times the code (values, indices) [..., m] -> [..., n]."""
    dtype = accumulation_dtype(values.dtype)
    dense = unpool(values.to(dtype), indices, D.shape[1])
    return (dense @ D.to(dtype).t()).to(values.dtype)
