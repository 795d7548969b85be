"""FISTA against scikit-learn's coordinate descent."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import cosamp, fista, htp, iht, iht_m, omp

from .problems import planted


@pytest.mark.parametrize("lam", [0.02, 0.2])
def test_the_minimum_is_scikit_learns(lam):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, D, _ = planted(n=40, p=60, rows=10)
    r = fista(x, D, lam, tol=1e-10, max_iter=20000)
    assert r.converged.all()
    # Lasso divides the quadratic by the number of its samples, which are our signal's entries.
    lasso = linear_model.Lasso(alpha=lam / 40, fit_intercept=False, tol=1e-12, max_iter=100000)
    theirs = torch.stack([torch.from_numpy(lasso.fit(D.numpy(), row.numpy()).coef_) for row in x])
    torch.testing.assert_close(r.code, theirs, atol=1e-6, rtol=1e-6)
    value = 0.5 * (x - theirs @ D.T).square().sum(1) + lam * theirs.abs().sum(1)
    torch.testing.assert_close(r.objective[-1], value)


def test_a_large_penalty_leaves_nothing():
    x, D, _ = planted()
    r = fista(x, D, 1.01 * (x @ D).abs().max().item())
    assert not r.code.any()
    assert r.converged.all()


def test_float32_and_leading_dimensions():
    x, D, _ = planted(rows=6, dtype=torch.float32)
    r = fista(x.reshape(2, 3, 30), D, 0.1, history=False)
    assert r.code.shape == (2, 3, 50)
    assert r.code.dtype == torch.float32
    exact = fista(x.double(), D.double(), 0.1, tol=1e-9, max_iter=10000).code
    torch.testing.assert_close(r.code.reshape(6, 50).double(), exact, atol=1e-3, rtol=0)


def test_no_solver_computes_in_bfloat16_under_autocast():
    x, D, _ = planted(rows=40, dtype=torch.float32)
    solvers = (
        lambda: fista(x, D, 0.1),
        lambda: iht(x, D, 0.1, init="l1"),
        lambda: iht(x=x, D=D, lam=0.1, step="normalized"),
        lambda: iht_m(x, D, 4, step="normalized"),
        lambda: omp(x, D, 4),
        lambda: htp(x, D, 4),
        lambda: cosamp(x, D, 4),
    )
    for solve in solvers:
        for backend in ("reference", "cpu"):
            with dk.use_backend(backend):
                want = solve()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    got = solve()
            assert torch.equal(got.dense, want.dense)
            assert torch.equal(got.objective, want.objective)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="x must have the dtype of D"),
    ):
        fista(x.double(), D, 0.1)


def test_bad_lam():
    x, D, _ = planted()
    with pytest.raises(ValueError, match=r"lam must be a finite number > 0, got -1\.0"):
        fista(x, D, -1.0)
