"""CUDA C++ kernels of the compiled extension, one module per operator file of ``ops``.

The kernels stand in csrc/cuda, their operators (``torch.ops.deepl0_cuda``) in csrc/torch/cuda; here
they are put together to the operators of ``torch.ops.deepl0``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from .. import _C

# Module -> the operators of torch.ops.deepl0 that it serves, under their names.
_MODULES = {
    "top_m": ("top_m", "keep_top_m", "unpool", "apply_mask"),
    "encode": ("encode_top_m", "encode_top_m_backward"),
    "decode": ("decode", "decode_backward"),
}
OPERATORS = {name: module for module, names in _MODULES.items() for name in names}


def installed() -> bool:
    """Whether this build has the kernels and this torch can run them (a ROCm torch cannot)."""
    return bool(_C.build_info()["cuda"]) and torch.version.hip is None


def launcher(operator: str) -> Callable:
    """The function that serves ``operator``; its module is imported by the first call."""

    module = None

    def launch(*args):
        nonlocal module
        if module is None:
            module = importlib.import_module(f"{__name__}.{OPERATORS[operator]}")
        return getattr(module, operator)(*args)

    return launch
