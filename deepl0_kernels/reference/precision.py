"""The one rule of precision: half types are computed in float32, and every result is
rounded once: that of an operator, and of every stage of an encoder."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which an operator on ``dtype`` accumulates, thresholds and selects."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
