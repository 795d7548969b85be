"""The deep l0 encoders of Tables 4 to 7: their names, and how they start."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn import DeepL0Encoder, DeepMSparseEncoder
from ..training import L0Regularized, MSparse
from .soft import SoftInside

SPARSITIES = (10, 20, 30)
DEEP_L0 = "Deep l0-Regularized"
DEEP_M = "Deep M-Sparse, M = {}"
DEEP = (DEEP_L0, *(DEEP_M.format(m) for m in SPARSITIES))

_SPARSITY = {DEEP_M.format(m): m for m in SPARSITIES}


def sparsity(method: str, protocol: Any) -> dict[str, Any]:
    """The argument of ``learn_dictionary`` that bounds or weighs the nonzeros: m or lam."""
    if method in _SPARSITY:
        return {"m": _SPARSITY[method]}
    return {"lam": protocol.l0_lam if method == DEEP_L0 else protocol.lam}


def encoder(method: str, protocol: Any, D: Tensor) -> DeepL0Encoder | DeepMSparseEncoder:
    """The encoder of one of ``DEEP`` that starts from the dictionary D [n, p]."""
    K = protocol.num_stages
    if method == DEEP_L0:
        return DeepL0Encoder.from_dictionary(D, protocol.l0_lam, K, grad=protocol.l0_grad)
    return DeepMSparseEncoder.from_dictionary(D, _SPARSITY[method], K)


def soft_inside(method: str, protocol: Any, D: Tensor) -> SoftInside:
    """:func:`encoder` with soft thresholds in all stages but the last, which start at ``lam``."""
    problem: L0Regularized | MSparse
    if method == DEEP_L0:
        problem = L0Regularized(lam=protocol.l0_lam)
    else:
        problem = MSparse(m=_SPARSITY[method], l1_lam=protocol.lam)
    return SoftInside(problem, D, protocol.num_stages, grad=protocol.l0_grad)
