"""Selection: every operator is one of the extension's (csrc/cuda/top_m.h)."""

from __future__ import annotations

from torch import Tensor

from . import library


def top_m(u: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::top_m``."""
    return library.kernels.top_m(u, m, positive)


def keep_top_m(u: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::keep_top_m``."""
    return library.kernels.keep_top_m(u, m, positive)


def unpool(values: Tensor, indices: Tensor, size: int) -> Tensor:
    """Serves ``deepl0::unpool``."""
    return library.kernels.unpool(values, indices, size)


def apply_mask(u: Tensor, mask: Tensor) -> Tensor:
    """Serves ``deepl0::apply_mask``."""
    return library.kernels.apply_mask(u, mask)
