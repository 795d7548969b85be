"""The deep l0 encoders of Tables 4 to 7: their names, and how they start."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn import DeepL0Encoder, DeepMSparseEncoder

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


def encoder(
    method: str, protocol: Any, D: Tensor, inside: str = "hard"
) -> DeepL0Encoder | DeepMSparseEncoder:
    """The encoder of one of ``DEEP`` that starts from the dictionary D [n, p].

    ``inside``: "soft" for soft thresholds in all stages but the last, which start at the
    protocol's l0_lam or, of M-sparse encoders, lam.
    """
    K, tied = protocol.num_stages, inside == "hard"
    if method == DEEP_L0:
        lam, grad = protocol.l0_lam, protocol.l0_grad
        return DeepL0Encoder.from_dictionary(D, lam, K, tied, grad=grad, inside=inside)
    m, l1_lam = _SPARSITY[method], None if tied else protocol.lam
    return DeepMSparseEncoder.from_dictionary(D, m, K, tied, inside=inside, l1_lam=l1_lam)
