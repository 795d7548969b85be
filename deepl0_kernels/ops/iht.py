"""All iterations of IHT with a fixed step in one operator; :mod:`deepl0_kernels.solvers` calls it.

No derivatives: a solver's result is a constant.
"""

from __future__ import annotations

import torch

from .. import reference
from . import registration


def fake_course(x, history):
    """Iterations, convergence and objective of a solver, as fake tensors."""
    batch = x.shape[0]
    length = torch.library.get_ctx().new_dynamic_size(min=1) if history else 2
    return (
        x.new_empty(batch, dtype=torch.int64),
        x.new_empty(batch, dtype=torch.bool),
        x.new_empty((length, batch)),
    )


def _fake_top_m(x, D, values, indices, m, step, tol, max_iter, history, positive=False):
    code = (x.shape[0], m)
    return x.new_empty(code), x.new_empty(code, dtype=torch.int64), *fake_course(x, history)


def _fake_l0(x, D, start, lam, step, tol, max_iter, history, positive=False):
    return x.new_empty((x.shape[0], D.shape[1])), *fake_course(x, history)


# -> code, iterations [B], converged [B], objective [T + 1, B], or [2, B] without history.
registration.define(
    "iht_top_m",
    "(Tensor x, Tensor D, Tensor? values, Tensor? indices, SymInt m, float step, float tol,"
    " int max_iter, bool history, bool positive=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_top_m,
)
registration.define(
    "iht_l0",
    "(Tensor x, Tensor D, Tensor? start, float lam, float step, float tol, int max_iter,"
    " bool history, bool positive=False) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_l0,
)
registration.differentiate("iht_top_m")
registration.differentiate("iht_l0")
registration.serve("iht_top_m", reference.iht_top_m)
registration.serve("iht_l0", reference.iht_l0)
