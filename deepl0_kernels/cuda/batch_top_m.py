"""Selection over a batch: one operator of the extension's (csrc/cuda/batch_top_m.h)."""

from __future__ import annotations

from torch import Tensor

from . import library


def batch_top_m(u: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Serves ``deepl0::batch_top_m``."""
    return library.kernels.batch_top_m(u, m, positive)
