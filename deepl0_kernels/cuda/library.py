"""The operators that the compiled extension registers, and what launchers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

kernels: Any = torch.ops.deepl0_cuda


def by_columns(t: Tensor) -> bool:
    """Whether the matrix is a transposed view of a contiguous one: so its gradient is, too."""
    rows, columns = t.shape[-2:]
    return t.stride(-2) == 1 and t.stride(-1) == rows and columns > 1


def products_per_gather(dtype: torch.dtype) -> int:
    """p / m up to which a dense product of length p beats a gather-sum of m rows.

    Per entry of the result 2 p flops stand against 4 m bytes from L2. At 5.5 TB/s and 400 TFLOP/s
    (half types, or TF32 where the user has allowed it) they meet at p = 145 m, at 60 TFLOP/s in
    plain float32 at p = 22 m. From data sheets of the H100; not measured.
    """
    fast = dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32
    return 145 if fast else 22
