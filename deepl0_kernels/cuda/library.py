"""The operators that the compiled extension registers, and what launchers share."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from .._matrices import by_columns

kernels: Any = torch.ops.deepl0_cuda


_atomics = False


def allow_atomics(allowed: bool = True) -> None:
    """Let the CUDA kernels' backward of ``encode_top_m`` add up dS by atomic additions.

    Off until it is called; ``allowed=False`` takes it back. It spares the sort of the supports by
    unit; the sums then have no fixed order, so the last bits of dS differ from run to run.
    Process-wide, and without effect on other backends or where the products are dense.

    Under ``torch.use_deterministic_algorithms(True)`` such a backward raises a RuntimeError, with
    ``warn_only=True`` it warns.

    Example:
        >>> dk.allow_atomics()  # faster sums of dS on a GPU, no fixed order
        >>> dk.allow_atomics(False)
    """
    global _atomics
    _atomics = bool(allowed)


def atomics() -> bool:
    """Whether dS is added up atomically now."""
    if _atomics and torch.are_deterministic_algorithms_enabled():
        text = (
            "encode_top_m: the atomic sum of dS is not deterministic, and "
            "torch.use_deterministic_algorithms is on; call dk.allow_atomics(False)"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(text)
        warnings.warn(text, stacklevel=2)
    return _atomics


@functools.cache
def refusal(device: torch.device) -> str | None:
    """Why the kernels cannot run on the device, or None: a driver older than the CUDA runtime they
    are linked with, or a device that none of the compiled architectures serves."""
    try:
        kernels.probe(device.index or 0)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def transposed(matrix: Tensor) -> Tensor:
    """The rows of the transpose, contiguous: a view where the matrix has them, else a copy."""
    return matrix.t() if by_columns(matrix) else kernels.transpose(matrix)


def gathers_pay(p: int, entries: int) -> bool:
    """Whether a sum of ``entries`` rows of length p beats a dense product, p wide and p deep.

    From p = 4 entries on, measured on an H200: per row of the result 2 p^2 flops at about 45
    TFLOP/s stand against 4 p entries bytes from L2, and the dense code is written and read as well.
    Where TF32 is allowed a product is eight times as fast; 64 follows from that, and is no
    measurement of the two.
    """
    return p >= (64 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 4) * entries


def sorting_pays(width: int, entries: int, flops: float) -> bool:
    """Whether a sum over the batch is cheaper by sorted supports than as a dense product.

    ``entries`` units of ``width`` are in use a row; ``flops`` are those of the dense product.
    Sorting takes some 25 us whatever the size, so small products stay dense; beyond, from
    width = 12 entries on. Measured on an H200.
    """
    return width >= 12 * entries and flops >= 1 << 30
