"""iht_m, omp, fista and least squares on supports against a dense torch loop, torch.linalg, SPAMS,
SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import orthogonal_mp

import deepl0_kernels as dk
from deepl0_kernels.ops.least_squares import least_squares
from deepl0_kernels.solvers.step import safe_step

from .conftest import EAGER, OURS
from .rivals import eager_iht_m, eager_least_squares

N, M, ITERATIONS = 256, 32, 10
# scikit-learn solves so many rows only; its time is scaled to the batch.
SLICE = 16
# SPAMS and scikit-learn have thread pools of their own. Without a rest our two threads took three
# times as long behind them as by themselves.
REST = 0.1


def signals(batch: int, p: int, positive: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """m-sparse codes (nonnegative ones) of a random unit-norm dictionary, and a little noise."""
    D = torch.nn.functional.normalize(torch.randn(N, p), dim=0)
    a = dk.keep_top_m(torch.randn(batch, p), M)
    a = a.abs() if positive else a
    return a @ D.t() + 0.01 * torch.randn(batch, N), D


def other_omp(x: torch.Tensor, D: torch.Tensor):
    """SPAMS's and scikit-learn's orthogonal matching pursuit, and how to scale their times."""
    spams = pytest.importorskip("spams", reason="the package spams-bin is not installed")
    X, A = (np.asfortranarray(t.numpy()) for t in (x.t(), D))
    providers = {
        "SPAMS omp": lambda: spams.omp(X, A, L=M, eps=0.0, numThreads=torch.get_num_threads()),
        "scikit-learn omp": lambda: orthogonal_mp(
            A, X[:, :SLICE], n_nonzero_coefs=M, precompute=True
        ),
    }
    return providers, {"scikit-learn omp": len(x) / SLICE}


@pytest.mark.parametrize("p", [512, 2048])
@pytest.mark.parametrize("batch", [128, 4096])
def test_iht_m(race, batch, p, threads):
    x, D = signals(batch, p)
    step = safe_step(D)
    want = eager_iht_m(x, D, step, M, ITERATIONS)[1].sort(-1).values
    others, scale = other_omp(x, D) if p == 512 else ({}, {})

    def check(name, out):
        if name in others:
            return  # another algorithm for the same problem
        indices = out[1] if name == EAGER else out.code.indices
        same = (indices.sort(-1).values == want).all(-1).float().mean()
        assert same > 0.97, (name, same)

    race(
        f"iht_m {ITERATIONS} iterations",
        f"B={batch} p={p} m={M}",
        {
            EAGER: lambda: eager_iht_m(x, D, step, M, ITERATIONS),
            **others,
            OURS: lambda: dk.solvers.iht_m(
                x, D, M, step=step, tol=1e-12, max_iter=ITERATIONS, history=False
            ),
        },
        check,
        scale=scale,
        rest=REST,
    )


@pytest.mark.parametrize("batch", [128, 4096])
def test_omp(race, batch, threads):
    p = 512
    x, D = signals(batch, p)
    others, scale = other_omp(x, D)
    want = dk.solvers.omp(x, D, M).code.to_dense()

    def check(name, out):
        if name == OURS:
            return
        found = torch.from_numpy(out.toarray() if hasattr(out, "toarray") else out).t()
        same = ((found != 0) == (want[: len(found)] != 0)).all(-1).float().mean()
        assert same > 0.9, (name, same)  # greedy in float32: SPAMS swaps near-ties in 5 % of rows

    race(
        "omp",
        f"B={batch} p={p} m={M}",
        {**others, OURS: lambda: dk.solvers.omp(x, D, M)},
        check,
        scale=scale,
        against="SPAMS omp",
        rest=REST,
    )


@pytest.mark.parametrize(("n", "p", "m"), [(64, 256, 16), (250, 500, 64), (250, 500, 100)])
def test_least_squares(race, n, p, m, threads):
    """What htp, cosamp and DeepHTPEncoder solve in every iteration."""
    batch = 512
    D = torch.nn.functional.normalize(torch.randn(n, p, dtype=torch.float64), dim=0)
    gram, x = D.T @ D, torch.randn(batch, n, dtype=torch.float64)
    support = dk.top_m(x @ D, m)[1]
    right = (x @ D).gather(1, support)
    want = eager_least_squares(gram, right, support)

    def check(name, out):
        torch.testing.assert_close(out, want, msg=name)

    race(
        "least_squares",
        f"B={batch} p={p} m={m}",
        {
            EAGER: lambda: eager_least_squares(gram, right, support),
            OURS: lambda: least_squares(gram, right, support, 1e-5),
        },
        check,
    )


def nonnegative_omp(X: np.ndarray, A: np.ndarray) -> np.ndarray:
    """As it is written: the columns of X one by one, SciPy's least squares for each atom."""
    codes = np.zeros((A.shape[1], X.shape[1]))
    for signal, code in zip(X.T, codes.T, strict=True):
        support: list[int] = []
        residual = signal
        for _ in range(M):
            correlation = residual @ A
            correlation[support] = -1
            support.append(int(correlation.argmax()))
            code[support] = nnls(A[:, support], signal)[0]
            residual = signal - A[:, support] @ code[support]
    return codes


@pytest.mark.parametrize("batch", [128, 4096])
def test_nonnegative_omp(race, batch, threads):
    """SPAMS and scikit-learn have none; what nonnegativity costs is seen beside the plain one."""
    p = 512
    x, D = signals(batch, p, positive=True)
    X, A = x[:SLICE].t().double().numpy(), D.double().numpy()
    want = dk.solvers.omp(x, D, M, positive=True).code.to_dense()

    def check(name, out):
        if name != "SciPy nnls":
            return
        found = torch.from_numpy(out).t()
        same = ((found > 0) == (want[: len(found)] > 0)).all(-1).float().mean()
        assert same > 0.8, (name, same)  # theirs in float64

    race(
        "omp positive",
        f"B={batch} p={p} m={M}",
        {
            "SciPy nnls": lambda: nonnegative_omp(X, A),
            "ours, signed": lambda: dk.solvers.omp(x, D, M),
            OURS: lambda: dk.solvers.omp(x, D, M, positive=True),
        },
        check,
        scale={"SciPy nnls": batch / SLICE},
        against="SciPy nnls",
        rest=REST,
    )


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("batch", [128, 4096])
def test_fista(race, batch, positive, threads):
    """Against scikit-learn's and SPAMS's lasso by coordinate descent and by homotopy (LARS)."""
    spams = pytest.importorskip("spams", reason="the package spams-bin is not installed")
    p, lam = 512, 0.2
    x, D = signals(batch, p, positive)
    options = dict(history=False, positive=positive)
    X, A = (np.asfortranarray(t.numpy()) for t in (x.t(), D))

    def objective(a: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x[: len(a)] - a @ D.t()).square().sum(1) + lam * a.abs().sum(1)

    want = objective(dk.solvers.fista(x, D, lam, tol=1e-6, **options).code)

    def check(name, out):
        if name == OURS:
            codes = out.code
        else:
            codes = torch.from_numpy(out.toarray().T if hasattr(out, "toarray") else out)
        found = objective(codes)
        near = (found <= (1 + 1e-3) * want[: len(found)]).float().mean()
        assert near == 1 if name == OURS else near > 0.99, (name, near)  # SPAMS gives up on a few

    race(
        "fista positive" if positive else "fista",
        f"B={batch} p={p} lam={lam}",
        {
            "SPAMS lasso": lambda: spams.lasso(
                X, A, lambda1=lam, mode=2, pos=positive, numThreads=torch.get_num_threads()
            ),
            "scikit-learn lasso_cd": lambda: sparse_encode(
                X[:, :SLICE].T,
                A.T,
                algorithm="lasso_cd",
                alpha=lam,
                max_iter=1000,
                positive=positive,
            ),
            OURS: lambda: dk.solvers.fista(x, D, lam, tol=1e-3, **options),
        },
        check,
        scale={"scikit-learn lasso_cd": batch / SLICE},
        against="SPAMS lasso",
        rest=REST,
    )
