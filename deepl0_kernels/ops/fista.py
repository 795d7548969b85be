"""All iterations of FISTA in one operator; :mod:`deepl0_kernels.solvers` calls it.

No derivatives: a solver's result is a constant.
"""

from __future__ import annotations

from .. import reference
from . import registration
from .iht import fake_course


def _fake(x, D, start, lam, step, tol, max_iter, history, positive=False):
    return x.new_empty((x.shape[0], D.shape[1])), *fake_course(x, history)


# -> code, iterations [B], converged [B], objective [T + 1, B], or [2, B] without history.
registration.define(
    "fista",
    "(Tensor x, Tensor D, Tensor? start, float lam, float step, float tol, int max_iter,"
    " bool history, bool positive=False) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake,
)
registration.differentiate("fista")
registration.serve("fista", reference.fista)
