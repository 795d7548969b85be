"""Fused operators for deep l0 encoders: exact l0-sparse codes in PyTorch.

>>> import torch, deepl0_kernels as dk
>>> values, indices = dk.top_m(torch.tensor([3.0, -5.0, 1.0, 4.0]), 2)
>>> values, indices
(tensor([-5.,  4.]), tensor([1, 3]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch  # its libraries must be loaded before the extension's

try:
    from ._C import build_info
except ImportError as error:
    raise ImportError(
        f"the extension deepl0_kernels._C cannot be loaded beside torch {torch.__version__}: "
        f"{error}. `pip install --no-build-isolation .` builds it; it needs torch 2.10 or later"
    ) from error
from .backends import backends, last_call, use_backend
from .cuda.library import allow_atomics
from .ops import (
    Plan,
    SparseCode,
    batch_top_m,
    decode,
    encode_l0,
    encode_top_m,
    hard_threshold,
    helu,
    keep_top_m,
    prepare,
    refit,
    soft_threshold,
    threshold_stage,
    top_m,
    top_m_stage,
    unpool,
)
from .version import __version__

if TYPE_CHECKING:
    from . import datasets, nn, solvers
    from .distributed import encode_dataset

__all__ = [
    "Plan",
    "SparseCode",
    "__version__",
    "allow_atomics",
    "backends",
    "batch_top_m",
    "build_info",
    "datasets",
    "decode",
    "encode_dataset",
    "encode_l0",
    "encode_top_m",
    "hard_threshold",
    "helu",
    "keep_top_m",
    "last_call",
    "nn",
    "prepare",
    "refit",
    "soft_threshold",
    "solvers",
    "threshold_stage",
    "top_m",
    "top_m_stage",
    "unpool",
    "use_backend",
]


# They load on first use, which keeps the import short.
_LAZY = ("datasets", "nn", "solvers")


def __getattr__(name: str) -> Any:
    if name == "encode_dataset":
        return importlib.import_module(f"{__name__}.distributed").encode_dataset
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
