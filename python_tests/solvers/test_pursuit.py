"""HTP and CoSaMP: recovery, least squares on the support, descent, degenerate dictionaries."""

from __future__ import annotations

import itertools

import pytest
import torch

from deepl0_kernels.solvers import cosamp, htp, iht_m

from .problems import planted

SOLVERS = (htp, cosamp)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_code_is_found(solver, dtype):
    x, D, code = planted(n=60, p=80, dtype=dtype)
    r = solver(x, D, 4)
    assert ((r.dense != 0) == (code != 0)).all(1).double().mean() > 0.8
    assert r.converged.all()
    found = ((r.dense != 0) == (code != 0)).all(1)
    assert (r.dense - code)[found].abs().max() < 0.05


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_objective_never_rises_and_is_the_objective(solver):
    x, D, _ = planted(rows=200)
    r = solver(3 * x, 7 * D, 5, tol=1e-10)
    assert (r.objective[1:] - r.objective[:-1]).max() <= 1e-9
    want = 0.5 * (3 * x - r.dense @ (7 * D).T).square().sum(1)
    torch.testing.assert_close(r.objective[-1], want, rtol=1e-8, atol=1e-9)
    short = solver(3 * x, 7 * D, 5, tol=1e-10, history=False)
    torch.testing.assert_close(short.dense, r.dense)
    assert len(short.objective) == 2


def test_htp_is_least_squares_on_its_support():
    x, D, _ = planted(rows=20)
    r = htp(x, D, 5, tol=1e-12)
    for row, signal in zip(r.dense, x, strict=True):
        at = row.nonzero()[:, 0]
        fit = torch.linalg.lstsq(D[:, at], signal[:, None]).solution[:, 0]
        torch.testing.assert_close(row[at], fit, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_better_than_exhaustive_search_and_close_to_it(solver):
    x, D, _ = planted(n=12, p=15, k=2, rows=30)
    best = torch.full((30,), torch.inf, dtype=x.dtype)
    for pair in itertools.combinations(range(15), 2):
        A = D[:, pair]
        residual = x.T - A @ torch.linalg.lstsq(A, x.T).solution
        best = torch.minimum(best, 0.5 * residual.square().sum(0))
    found = solver(x, D, 2).objective[-1]
    assert (found >= best - 1e-12).all()
    assert (found <= best + 1e-9).double().mean() > 0.6


def test_htp_needs_fewer_iterations_than_iht():
    x, D, _ = planted(n=60, p=80)
    assert htp(x, D, 4).iterations.max() < iht_m(x, D, 4).iterations.double().mean()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_signal_ends_with_the_iteration_that_changes_nothing(solver):
    x, D, _ = planted(n=60, p=80)
    r = solver(x, D, 4)
    last = int(r.iterations.max())
    assert r.iterations.min() < last
    assert r.converged.all()
    less = solver(x, D, 4, max_iter=last - 1)
    assert torch.equal(less.converged, r.iterations < last)
    assert torch.equal(less.dense, r.dense)  # the last one found the same code


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_atoms_that_depend_on_each_other(solver, dtype):
    x, D, _ = planted(n=20, p=24, dtype=dtype)
    D = torch.cat([D, D[:, :8], torch.zeros(20, 3, dtype=dtype)], 1)  # twins and dead atoms
    r = solver(x, D, 6)
    assert r.dense.isfinite().all()
    assert (r.objective[-1] <= r.objective[0] * (1 + 1e-6)).all()
    assert (r.dense != 0).sum(1).max() <= 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_shapes_and_zero_signals(solver):
    x, D, _ = planted(rows=6)
    r = solver(x.reshape(2, 3, 30), D, 3)
    assert r.dense.shape == (2, 3, 50)
    assert r.iterations.shape == r.converged.shape == (2, 3)
    torch.testing.assert_close(r.dense[1, 2], solver(x[5], D, 3).dense)
    zero = solver(torch.zeros(4, 30, dtype=x.dtype), D, 3)
    assert not zero.dense.any()
    assert zero.converged.all()
    assert solver(x[:0], D, 3).dense.shape == (0, 50)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(m=0), ("m must be", "0")),
        (dict(m=31), ("m must be", "31")),
        (dict(tol=0.0), ("tol must be", "0.0")),
        (dict(max_iter=0), ("max_iter must be", "0")),
        (dict(x=torch.full((2, 30), torch.nan)), ("x must be finite", "60")),
        (dict(x=torch.zeros(2, 29)), ("x must be", "29")),
    ],
)
def test_bad_input_is_named(solver, change, words):
    arguments = dict(x=torch.randn(2, 30), D=torch.randn(30, 50), m=3) | change
    with pytest.raises(ValueError, match="must be") as caught:
        solver(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
