"""iht_m and omp against a dense torch loop, SPAMS and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers.step import safe_step

from .conftest import EAGER, OURS
from .rivals import eager_iht_m

N, M, ITERATIONS = 256, 32, 10
# scikit-learn solves so many rows only; its time is scaled to the batch.
SLICE = 64


def signals(batch: int, p: int) -> tuple[torch.Tensor, torch.Tensor]:
    """m-sparse codes of a random unit-norm dictionary, and a little noise."""
    D = torch.nn.functional.normalize(torch.randn(N, p), dim=0)
    a = dk.keep_top_m(torch.randn(batch, p), M)
    return a @ D.t() + 0.01 * torch.randn(batch, N), D


@pytest.mark.parametrize("p", [512, 2048])
@pytest.mark.parametrize("batch", [128, 4096])
def test_iht_m(race, batch, p, threads):
    x, D = signals(batch, p)
    step = safe_step(D)
    want = eager_iht_m(x, D, step, M, ITERATIONS)[1].sort(-1).values

    def check(name, out):
        indices = out[1] if name == EAGER else out.code.indices
        same = (indices.sort(-1).values == want).all(-1).float().mean()
        assert same > 0.97, (name, same)

    race(
        f"iht_m {ITERATIONS} iterations",
        f"B={batch} p={p} m={M}",
        {
            EAGER: lambda: eager_iht_m(x, D, step, M, ITERATIONS),
            OURS: lambda: dk.solvers.iht_m(
                x, D, M, step=step, tol=1e-12, max_iter=ITERATIONS, history=False
            ),
        },
        check,
    )


@pytest.mark.parametrize("batch", [128, 4096])
def test_omp(race, batch, threads):
    spams = pytest.importorskip("spams", reason="the package spams-bin is not installed")
    from sklearn.linear_model import orthogonal_mp

    p = 512
    x, D = signals(batch, p)
    X, A = (np.asfortranarray(t.numpy()) for t in (x.t(), D))
    want = dk.solvers.omp(x, D, M).code.to_dense()

    def with_spams():
        return spams.omp(X, A, L=M, eps=0.0, numThreads=torch.get_num_threads())

    def with_sklearn():
        return orthogonal_mp(A, X[:, :SLICE], n_nonzero_coefs=M, precompute=True)

    def check(name, out):
        if name == OURS:
            return
        found = torch.from_numpy(out.toarray() if hasattr(out, "toarray") else out).t()
        same = ((found != 0) == (want[: len(found)] != 0)).all(-1).float().mean()
        assert same > 0.9, (name, same)  # greedy in float32: SPAMS swaps near-ties in 5 % of rows

    race(
        "omp",
        f"B={batch} p={p} m={M}",
        {
            "SPAMS": with_spams,
            "scikit-learn": with_sklearn,
            OURS: lambda: dk.solvers.omp(x, D, M),
        },
        check,
        scale={"scikit-learn": batch / SLICE},
        against="SPAMS",
    )
