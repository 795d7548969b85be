"""The factored M-sparse encoder by the CUDA kernels: what it is made of stands in _factored.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _factored
from . import library

# Of a product [B, p] at a time: 1 GB.
ELEMENTS = 1 << 28


def _dots(indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    return library.kernels.row_dots(indices, rows.to(x.dtype), x)


def _combine(lists: Any, c: Tensor, x: Tensor) -> Tensor:
    return library.kernels.combine(*lists, c, x)


def _kernels() -> _factored.Kernels:
    kernels = library.kernels
    return _factored.Kernels(
        elements=ELEMENTS,
        halves=True,
        product=_product,
        top_m=kernels.top_m,
        atoms=library.transposed,
        gather_sum=lambda values, indices, rows: kernels.gather_rows(values, indices, rows, True),
        dots=_dots,
        group=kernels.group,
        combine=_combine,
    )


def encode_top_m_factored(*args: Any) -> tuple[Tensor, ...]:
    """Serves ``deepl0::encode_top_m_factored``."""
    return _factored.encode_top_m(_kernels(), *args)


def encode_top_m_factored_backward(*args: Any) -> tuple[Tensor, ...]:
    """Serves ``deepl0::encode_top_m_factored_backward``."""
    return _factored.encode_top_m_backward(_kernels(), *args)


def _product(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b in float32; half types multiply on tensor cores and accumulate in float32.

    b goes through the product, as its start or its last terms: no pass over [B, p] of its own.
    """
    if x.dtype == torch.float32:
        return x @ W.t() if bias is None else torch.addmm(bias.float(), x, W.t())
    if bias is not None:
        # No product of half types takes a bias and gives float32 in every version of torch. So b
        # is a column of W, and zeros up to rows of whole vectors; b times 1 is exact.
        more = 8 - x.shape[1] % 8
        one, zero = x.new_ones(1, 1), x.new_zeros(1, 1)
        x = torch.cat((x, one.expand(x.shape[0], more)), 1)
        W = torch.cat((W, bias[:, None], zero.expand(W.shape[0], more - 1)), 1)
    if x.device.type == "cpu":  # the tests' emulation: torch has no such product there
        return x.float() @ W.t().float()
    return torch.mm(x, W.t(), out_dtype=torch.float32)
