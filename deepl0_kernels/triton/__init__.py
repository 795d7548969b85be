"""Triton kernels for NVIDIA and AMD GPUs, one module per operator file of ``ops``.

Importing this package imports no triton: the module of an operator is loaded by its first call.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from . import tuned

# Module -> the operators of torch.ops.deepl0 that it serves, under their names.
_MODULES = {
    "thresholds": ("threshold", "threshold_backward"),
    "decode": ("decode", "decode_backward"),
    "top_m": ("top_m", "keep_top_m", "unpool", "apply_mask"),
    "stage": ("threshold_stage", "top_m_stage"),
    "encode": ("encode_l0", "encode_l0_backward", "encode_top_m", "encode_top_m_backward"),
}
OPERATORS = {name: module for module, names in _MODULES.items() for name in names}


def installed() -> bool:
    """Whether triton can be imported (looked up, not imported)."""
    return importlib.util.find_spec("triton") is not None


def launcher(operator: str) -> Callable:
    """The function that serves ``operator``; its module is imported by the first call."""

    module = None

    def launch(*args):
        nonlocal module
        if module is None:
            module = importlib.import_module(f"{__name__}.{OPERATORS[operator]}")
        with tuned.serving(args[0]):
            return getattr(module, operator)(*args)

    return launch
