"""The weights of an unrolled encoder that follow from the dictionary alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .._isolation import isolated
from . import step as steps


@isolated(False)
def analytic_weights(D: Tensor) -> Tensor:
    """W that minimises ``||W D||_F`` where every ``w_i d_i`` is 1: of least mutual coherence.

    ``w_i = C d_i / (d_i' C d_i)`` with C the pseudoinverse of D D': the closed form. The ALISTA
    stage ``h(z + step W (x - D z))`` needs to learn no more than numbers.

    Args:
        D: [n, p], finite.

    Returns:
        W [p, n], of D's dtype and device; formed in float64.

    Raises:
        ValueError: D is no such matrix, an atom is 0, or the weights exceed D's dtype.

    O(n^2 (n + p)). Source: Liu, Chen, Wang, Yin 2019 (ALISTA), with the Frobenius norm in the place
    of the largest entry.

    Example:
        >>> D = torch.nn.functional.normalize(torch.randn(16, 32), dim=0)
        >>> torch.allclose((dk.solvers.analytic_weights(D) @ D).diagonal(), torch.ones(32))
        True
    """
    steps.dictionary("D", D)
    wide = D.detach().double()
    norms = wide.norm(dim=0)
    if not norms.all():
        raise ValueError(f"D must have no atom that is 0, got {int((norms == 0).sum())} of them")
    unit = wide / norms
    W = torch.linalg.pinv(unit @ unit.T, hermitian=True) @ unit
    W = (W / ((unit * W).sum(0) * norms)).T.to(D.dtype)
    if not W.isfinite().all():
        raise ValueError(f"D has atoms of norm {norms.min():.3g}, whose weights exceed {D.dtype}")
    return W.contiguous()
