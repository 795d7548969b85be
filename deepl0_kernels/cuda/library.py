"""The operators that the compiled extension registers, and what launchers share."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

kernels: Any = torch.ops.deepl0_cuda


_atomics = False


def allow_atomics(allowed: bool = True) -> None:
    """Let the CUDA kernels' backward of ``encode_top_m`` add up dS by atomic additions.

    Off by default. It spares the sort of the supports by unit, which pays for small batches; the
    sums then have no fixed order, so the last bits of dS differ from run to run. Process-wide, and
    without effect on other backends or where the products are dense.

    Under ``torch.use_deterministic_algorithms(True)`` such a backward raises a RuntimeError, with
    ``warn_only=True`` it warns.
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


@functools.cache
def persistent_most(device: torch.device) -> int:
    """The longest code that the device's shared memory lets one launch encode; without a device, as
    an H100 would."""
    return kernels.persistent_most(device.index or 0) if device.type == "cuda" else 512


def by_columns(t: Tensor) -> bool:
    """Whether the matrix is a transposed view of a contiguous one: so its gradient is, too."""
    rows, columns = t.shape[-2:]
    return t.stride(-2) == 1 and t.stride(-1) == rows and columns > 1


def products_per_gather() -> int:
    """p / m up to which a dense product of length p beats a gather-sum of m rows.

    Per entry of the result 2 p flops stand against 4 m bytes from L2. The code is float32 whatever
    the signals are, and so is the product: at 5.5 TB/s and 60 TFLOP/s they meet at p = 22 m, at 400
    TFLOP/s, where TF32 is allowed, at p = 145 m. From data sheets of the H100; not measured.
    """
    return 145 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 22
