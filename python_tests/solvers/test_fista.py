"""FISTA against scikit-learn's coordinate descent, SPAMS's homotopy, and its own reference."""

from __future__ import annotations

import math

import numpy as np
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


# Each size takes another form of the gradient: D'D by rows and, for small lam, by products with it
# or through the residual; no D'D at all.
FORMS = {
    "rows": dict(n=60, p=80, k=4, rows=100),
    "residual": dict(n=30, p=100, k=4, rows=300),
    "no gram": dict(n=20, p=700, k=4, rows=9),
    "one": dict(n=1, p=1, k=1, rows=1),
    "odd": dict(n=17, p=33, k=2, rows=19),
}


@pytest.mark.parametrize("lam", [0.05, 1e-3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_iteration_follows_the_float64_reference(form, lam, dtype):
    x, D, _ = planted(**FORMS[form], dtype=dtype)
    n, p = D.shape
    mu = 1 / dk.solvers.squared_norm(D)
    options = dict(tol=1e-30, history=True)
    for k in (1, 2, 3, 6, 13, 40):
        got = fista(x, D, lam, max_iter=k, **options)
        want = dk.reference.fista(x.double(), D.double(), None, lam, mu, 1e-30, k, True)
        if k <= 13:  # rounding decides when a row stands still to the last bit
            assert torch.equal(got.iterations, want[1])
            assert torch.equal(got.converged, want[2])
        longest = min(len(got.objective), len(want[3]))
        # docs/numerics.md: the bound of one gradient step, and k of them add up.
        terms = mu * (x.abs() @ D.abs() + want[0].to(dtype).abs() @ (D.T.abs() @ D.abs()))
        bound = k * (n + p + 2) * torch.finfo(dtype).eps / 2 * terms.double().max()
        assert (got.code.double() - want[0]).abs().max() <= bound
        scale = 1 + x.double().square().sum(1)
        bound = k * (n + p + 2) * torch.finfo(dtype).eps / 2 * scale / mu
        assert ((got.objective[:longest].double() - want[3][:longest]).abs() <= bound).all()


@pytest.mark.parametrize("lam", [0.05, 1e-3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_given_codes_every_iteration_follows_the_float64_reference(form, lam, dtype):
    x, D, _ = planted(**FORMS[form], dtype=dtype)
    n, p = D.shape
    mu = 1 / dk.solvers.squared_norm(D)
    start = torch.randn(len(x), p, dtype=dtype)
    start[::2] *= torch.rand(len(x), p)[::2] < 0.1  # rows that are sparse, others that are dense
    for k in (1, 2, 5, 12):
        want = dk.reference.fista(x.double(), D.double(), start.double(), lam, mu, 1e-30, k, True)
        terms = mu * (x.abs() @ D.abs() + start.abs() @ (D.T.abs() @ D.abs()))
        bound = (k + 1) * (n + p + 2) * torch.finfo(dtype).eps / 2 * terms.double().max()
        for history in (True, False):
            got = fista(x, D, lam, init=start, tol=1e-30, max_iter=k, history=history)
            if k <= 5:  # rounding decides when a row stands still to the last bit
                assert torch.equal(got.iterations, want[1])
            assert (got.code.double() - want[0]).abs().max() <= bound
            for which in (0, -1):  # the objective of the start, and of the end
                scale = 1 + want[3][0].abs()
                assert (
                    (got.objective[which].double() - want[3][which]).abs() <= bound * scale / mu
                ).all()


def test_a_warm_start_is_followed_and_saves_iterations():
    x, D, _ = planted(rows=100)
    cold = fista(x, D, 0.05, tol=1e-8, max_iter=20000)
    warm = fista(x, D, 0.05, init=cold.code, tol=1e-6)
    assert warm.converged.all()
    assert warm.iterations.float().mean() < cold.iterations.float().mean() / 2
    torch.testing.assert_close(warm.objective[0], cold.objective[-1])
    torch.testing.assert_close(warm.code, cold.code, atol=1e-6, rtol=1e-5)
    # Another penalty, leading dimensions, gradients: only the values of the start count.
    start = cold.code.reshape(4, 25, -1).requires_grad_()
    other = fista(x.reshape(4, 25, -1), D, 0.1, init=start, tol=1e-9, max_iter=20000)
    assert not other.code.requires_grad
    direct = fista(x, D, 0.1, tol=1e-9, max_iter=20000)
    torch.testing.assert_close(other.code.reshape(100, -1), direct.code, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("l1", "init must be one of"),
        (torch.zeros(3, 50, dtype=torch.float64), "init must have shape"),
        (torch.zeros(4, 50), "init must have the dtype of x"),
        (torch.full((4, 50), math.nan, dtype=torch.float64), "init must be finite, got 200"),
    ],
)
def test_a_bad_start_is_named(init, message):
    x, D, _ = planted(n=30, p=50, rows=4)
    with pytest.raises(ValueError, match=message):
        fista(x, D, 0.1, init=init)


def kkt_violation(x, D, a, lam):
    """How far 0 is from the subdifferential of the lasso at a, relative to lam."""
    c = (x - a @ D.T) @ D
    off = torch.where(a == 0, (c.abs() - lam).clamp_min(0), (c - lam * a.sign()).abs())
    return off.max().item() / lam


@pytest.mark.parametrize("form", ["rows", "residual", "odd"])
def test_the_limit_satisfies_the_conditions_of_a_minimum(form):
    x, D, _ = planted(**FORMS[form])
    r = fista(x, D, 0.05, tol=1e-12, max_iter=50000)
    assert r.converged.all()
    assert kkt_violation(x, D, r.code, 0.05) < 1e-6
    assert kkt_violation(x, D, 1.01 * r.code, 0.05) > 1e-3  # the measure can fail


@pytest.mark.parametrize("lam", [0.02, 0.3])
def test_the_minimum_is_that_of_spams(lam):
    spams = pytest.importorskip("spams", reason="the package spams-bin is not installed")
    x, D, _ = planted(n=40, p=60, rows=30)
    r = fista(x, D, lam, tol=1e-10, max_iter=20000)
    X, A = (np.asfortranarray(t.numpy()) for t in (x.T, D))
    theirs = torch.from_numpy(spams.lasso(X, A, lambda1=lam, mode=2, numThreads=1).toarray().T)

    def value(a):
        return 0.5 * (x - a @ D.T).square().sum(1) + lam * a.abs().sum(1)

    torch.testing.assert_close(r.code, theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(r.objective[-1], value(theirs), atol=1e-10, rtol=1e-10)


def test_history_is_the_objective_and_rows_that_stopped_repeat_it():
    x, D, _ = planted(rows=100)
    options = dict(tol=1e-9, max_iter=3000)
    r = fista(x, D, 0.01, **options)
    assert r.converged.all()
    assert r.objective.shape == (int(r.iterations.max()) + 1, 100)
    assert int(r.iterations.max()) > 64  # more than a block of the history
    assert int(r.iterations.min()) < int(r.iterations.max())
    last = r.objective.gather(0, r.iterations[None])[0]
    assert torch.equal(last, r.objective[-1])
    torch.testing.assert_close(r.objective[0], 0.5 * x.square().sum(1))
    torch.testing.assert_close(
        last, 0.5 * (x - r.code @ D.T).square().sum(1) + 0.01 * r.code.abs().sum(1)
    )
    brief = fista(x, D, 0.01, **options, history=False)
    assert torch.equal(brief.objective, r.objective[[0, -1]])
    assert torch.equal(brief.code, r.code)


def test_every_row_stops_by_itself():
    x, D, _ = planted(rows=50)
    x[7] *= 1000  # its penalty has further to fall
    x[8] = 0
    whole = fista(x, D, 0.05, tol=1e-8)
    assert whole.iterations[8] == 5  # the first look at convergence
    assert whole.iterations[7] > whole.iterations[8]
    for i in (0, 7, 8, 49):
        alone = fista(x[i], D, 0.05, tol=1e-8)
        torch.testing.assert_close(alone.code, whole.code[i])
        assert alone.iterations == whole.iterations[i]


def test_nothing_converges_while_the_penalty_falls():
    # Any step is below this tolerance, so the first look after the fall ends the row.
    x, D, _ = planted(rows=20)
    for backend in ("cpu", "reference"):
        with dk.use_backend(backend):
            r = fista(x, D, 1e-6, tol=10.0)
            early = fista(x, D, 1e-6, tol=10.0, max_iter=20)
        falls = ((x @ D).abs().amax(1) / 1e-6).log() / math.log(1 / 0.8)
        assert (r.iterations >= falls).all(), backend
        assert (r.iterations <= falls + 6).all(), backend
        assert r.converged.all()
        assert not early.converged.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["rows", "residual", "no gram"])
def test_the_same_bits_for_any_number_of_threads(form, dtype):
    x, D, _ = planted(**FORMS[form], dtype=dtype)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            mu = 1 / 40  # an argument of the operator: the norm is not its business
            found.append(torch.ops.deepl0.fista(x, D, None, 1e-3, mu, 1e-6, 200, True))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_any_layout_and_an_empty_batch():
    x, D, _ = planted(rows=24)
    want = fista(x, D, 0.05)
    by_columns = D.T.contiguous().T
    part = torch.nn.functional.pad(D, (3, 2), value=7.0)[:, 3:-2]
    torch.testing.assert_close(fista(x, part, 0.05).code, want.code)
    for other in (x.T.contiguous().T, x.repeat_interleave(2, 1)[:, ::2]):
        torch.testing.assert_close(fista(other, by_columns, 0.05).code, want.code)
    row = x[:1].expand(5, -1)
    torch.testing.assert_close(fista(row, D, 0.05).code, want.code[:1].expand(5, -1))
    for history, length in ((True, 1), (False, 2)):
        empty = fista(x[:0].reshape(3, 0, 30), D, 0.05, history=history)
        assert empty.code.shape == (3, 0, 50)
        assert empty.converged.shape == (3, 0)
        assert empty.objective.shape == (length, 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.full((2, 30), torch.nan, dtype=torch.float64)), "x must be finite, got 60"),
        (dict(D=torch.full((30, 50), torch.inf, dtype=torch.float64)), "D must be finite, got 1"),
        (dict(D=torch.ones(0, 50, dtype=torch.float64)), r"D must be a matrix.*\(0, 50\)"),
        (dict(D=torch.ones(30, 0, dtype=torch.float64)), r"D must be a matrix.*\(30, 0\)"),
        (dict(x=torch.ones(2, 31, dtype=torch.float64)), "x must be .* n = 30"),
        (
            dict(x=torch.ones(2, 30).bfloat16(), D=torch.ones(30, 50).bfloat16()),
            "D must be float32 or float64, got torch.bfloat16",
        ),
        (
            dict(x=torch.ones(2, 30).half(), D=torch.ones(30, 50).half()),
            "D must be float32 or float64, got torch.float16",
        ),
        (dict(lam=0.0), r"lam must be a finite number > 0, got 0\.0"),
        (dict(tol=0.0), r"tol must be a finite number > 0, got 0\.0"),
        (dict(max_iter=0), "max_iter must be >= 1, got 0"),
    ],
)
def test_bad_arguments(change, message):
    x, D, _ = planted()
    with pytest.raises(ValueError, match=message):
        fista(**(dict(x=x, D=D, lam=0.1) | change))


def test_the_operator_refuses_what_it_does_not_serve():
    x, D, _ = planted()
    op = torch.ops.deepl0.fista
    with pytest.raises(RuntimeError, match="x and D must both be float32 or float64"):
        op(x.half(), D.half(), None, 0.1, 0.1, 1e-3, 5, False)
    with pytest.raises(RuntimeError, match="do not fit"):
        op(x[:, 1:], D, None, 0.1, 0.1, 1e-3, 5, False)
    with pytest.raises(RuntimeError, match="lam must be > 0"):
        op(x, D, None, -0.1, 0.1, 1e-3, 5, False)
    with pytest.raises(RuntimeError, match="step must be > 0"):
        op(x, D, None, 0.1, float("nan"), 1e-3, 5, False)
    with pytest.raises(RuntimeError, match=r"the start must be \[B, p\] of the dtype of x"):
        op(x, D, x, 0.1, 0.1, 1e-3, 5, False)
