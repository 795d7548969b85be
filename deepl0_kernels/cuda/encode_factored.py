"""The factored M-sparse encoder by the CUDA kernels: what it is made of stands in _factored.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _factored
from . import encode, library


def _dots(indices: Tensor, rows: Tensor, x: Tensor) -> Tensor:
    return library.kernels.row_dots(indices, rows.to(x.dtype), x)


def _combine(lists: Any, c: Tensor, x: Tensor) -> Tensor:
    return library.kernels.combine(*lists, c, x)


def _kernels() -> _factored.Kernels:
    kernels = library.kernels
    return _factored.Kernels(
        elements=encode.ELEMENTS,
        halves=True,
        product=encode.product,
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
