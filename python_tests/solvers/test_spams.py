"""The solvers against SPAMS, which nobody here wrote."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels.solvers import fista, iht, omp
from deepl0_kernels.solvers.step import squared_norm

from .problems import planted

np = pytest.importorskip("numpy")
spams = pytest.importorskip("spams")


def columns(t):
    return np.asfortranarray(t.numpy())


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5, 50])
@pytest.mark.parametrize("lam", [0.05, 0.2])
def test_iht_is_spams_ista_for_the_l0_penalty(lam, k, warm):
    x, D, code = planted(rows=60)
    L = squared_norm(D) / 0.99
    start = 0.7 * code if warm else torch.zeros_like(code)
    theirs, info = spams.fistaFlat(
        columns(x.T), columns(D), columns(start.T), True, numThreads=1, max_it=k, L0=L,
        fixed_step=True, lambda1=lam, tol=1e-300, it0=10_000, regul="l0", loss="square", ista=True,
    )  # fmt: skip
    theirs = torch.from_numpy(theirs.T.copy())
    ours = iht(x, D, lam, step=1 / L, init=start, max_iter=k, tol=1e-300)
    assert ours.code.any()
    assert torch.equal(ours.code != 0, theirs != 0)
    torch.testing.assert_close(ours.code, theirs, atol=1e-12, rtol=1e-12)
    # Theirs is the mean over signals, too.
    assert info[0].mean() == pytest.approx(ours.objective[-1].mean().item(), rel=1e-9)


@pytest.mark.parametrize(("m", "alike"), [(1, 1.0), (2, 1.0), (4, 0.9)])
def test_omp_is_spams_while_its_order_does_not_matter(m, alike):
    """Theirs weighs a correlation by what is left of the atom, so that later choices may differ."""
    x, D, _ = planted(rows=60)
    theirs = spams.omp(columns(x.T), columns(D), L=m, eps=0.0, numThreads=1).toarray().T
    theirs, ours = torch.from_numpy(theirs.copy()), omp(x, D, m).dense
    same = ((ours != 0) == (theirs != 0)).all(1)
    assert same.double().mean() >= alike
    torch.testing.assert_close(ours[same], theirs[same])


@pytest.mark.parametrize("lam", [0.05, 0.2])
def test_fista_ends_where_spams_lasso_does(lam):
    x, D, _ = planted(n=40, p=60, rows=40)
    theirs = spams.lasso(columns(x.T), columns(D), lambda1=lam, mode=2, numThreads=1)
    theirs = torch.from_numpy(theirs.toarray().T.copy())
    ours = fista(x, D, lam, tol=1e-9, max_iter=20_000)
    torch.testing.assert_close(ours.code, theirs, atol=1e-6, rtol=1e-6)
