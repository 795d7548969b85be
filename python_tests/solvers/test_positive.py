"""Nonnegative codes: against the reference, SPAMS, scikit-learn, SciPy, and what a minimum is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import SparseCode
from deepl0_kernels.solvers import (
    DictionaryLearner,
    TaskDrivenDictionary,
    elastic_net,
    fista,
    iht,
    iht_m,
    learn_dictionary,
    omp,
    squared_norm,
)
from deepl0_kernels.solvers.step import safe_step

from .problems import planted

STEPS = ("lipschitz", "normalized", "accelerated")
SOLVERS = {
    "fista": lambda x, D, **more: fista(x, D, 0.05, **more),
    "iht": lambda x, D, **more: iht(x, D, 0.05, **more),
    "iht_m": lambda x, D, **more: iht_m(x, D, 4, **more),
    "omp": lambda x, D, **more: omp(x, D, 4, **more),
    "elastic_net": lambda x, D, **more: elastic_net(x, D, 0.05, 0.01, **more),
}
every_solver = pytest.mark.parametrize("name", SOLVERS)


def problem(n=30, p=50, k=4, rows=40, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor, Tensor]:
    """Signals of nonnegative codes, every third with a part that no such code explains."""
    x, D, code = planted(n=n, p=p, k=k, rows=rows, seed=seed, dtype=dtype)
    x = x - code @ D.T + code.abs() @ D.T
    x[::3] = planted(n=n, p=p, k=k, rows=rows, seed=seed, dtype=dtype)[0][::3]
    return x, D, code.abs()


def opposed(n=12, p=20, rows=9, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Signals that no atom correlates with but negatively."""
    g = torch.Generator().manual_seed(3)
    D = torch.rand(n, p, generator=g, dtype=dtype) + 0.1
    return -torch.rand(rows, n, generator=g, dtype=dtype) - 0.1, D / D.norm(dim=0)


def assert_plus_zero(a: Tensor) -> None:
    assert (a >= 0).all()
    assert not a.signbit().any()


# All of them.


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_solver
def test_a_signal_that_only_correlates_negatively_has_the_code_0(name, backend):
    for dtype in (torch.float32, torch.float64):
        x, D = opposed(dtype=dtype)
        with dk.use_backend(backend):
            found = SOLVERS[name](x, D, positive=True)
            signed = SOLVERS[name](x, D)
        assert not found.dense.any()
        assert_plus_zero(found.dense)
        assert found.converged.all()
        assert (found.iterations == (0 if name == "omp" else 5)).all()  # the first look
        assert torch.equal(found.objective[-1], found.objective[0])
        torch.testing.assert_close(found.objective[0], 0.5 * x.square().sum(1))
        assert signed.dense.any(1).all()


@every_solver
def test_a_dictionary_and_its_negative_give_the_signed_problem(name):
    """Over [D, -D] nonnegative codes are the two parts of signed ones: the same minimum, and for
    omp and iht_m the same course."""
    x, D, _ = planted(rows=30)
    both = torch.cat((D, -D), 1)
    more = {} if name == "omp" else dict(tol=1e-10, max_iter=20_000)
    if name in ("iht", "iht_m"):
        more["step"] = 0.3 / squared_norm(D)
    found = SOLVERS[name](x, both, positive=True, **more)
    signed = SOLVERS[name](x, D, **more)
    positive, negative = found.dense.split(50, 1)
    assert not ((positive > 0) & (negative > 0)).any()
    torch.testing.assert_close(positive - negative, signed.dense, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(found.objective[-1], signed.objective[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_solver
def test_codes_are_nonnegative_shapes_kept_and_nobody_elses_business(name, dtype):
    x, D, _ = problem(rows=24, dtype=dtype)
    found = SOLVERS[name](x.reshape(2, 3, 4, 30), D, positive=True)
    assert found.dense.shape == (2, 3, 4, 50)
    assert found.dense.dtype == dtype
    assert_plus_zero(found.dense)
    assert found.dense.any()
    assert (found.objective[-1] <= found.objective[0]).all()
    empty = SOLVERS[name](x[:0].reshape(3, 0, 30), D, positive=True)
    assert empty.dense.shape == (3, 0, 50)
    assert empty.converged.shape == (3, 0)
    # Where fista stops by its tolerance, far from the minimum against a rounding, two ways of
    # rounding are as far from one another; so its codes are compared at the minimum.
    more = dict(tol=1e-7, max_iter=20_000) if name == "fista" else {}
    ended = SOLVERS[name](x, D, positive=True, **more).dense
    for i in (0, 7, 23):
        alone = SOLVERS[name](x[i], D, positive=True)
        assert alone.iterations == found.iterations.flatten()[i]
        torch.testing.assert_close(SOLVERS[name](x[i], D, positive=True, **more).dense, ended[i])
    wide, part = x.repeat_interleave(2, 1)[:, ::2], torch.nn.functional.pad(D, (3, 2))[:, 3:-2]
    again = SOLVERS[name](wide, part.T.contiguous().T, positive=True)
    torch.testing.assert_close(again.dense, found.dense.reshape(24, 50))


@every_solver
def test_what_is_not_true_or_false_is_named(name):
    x, D, _ = problem()
    for value in (1, "yes", None):
        with pytest.raises(TypeError, match=f"positive must be True or False, got {value!r}"):
            SOLVERS[name](x, D, positive=value)
    with pytest.raises(ValueError, match="x must be finite, got 30"):
        SOLVERS[name](x.index_fill(0, torch.tensor([2]), math.nan), D, positive=True)
    with pytest.raises(ValueError, match="D must be finite"):
        SOLVERS[name](x, D * math.inf, positive=True)


# The l1 problems.


def kkt_violation(x: Tensor, D: Tensor, a: Tensor, lam: float, lam2: float = 0.0) -> float:
    """How far a >= 0 is from a minimum: the slope is 0 where a > 0, not downhill elsewhere."""
    slope = (x - a @ D.T) @ D - lam - lam2 * a
    off = torch.where(a > 0, slope.abs(), slope.clamp_min(0))
    return max(off.max().item(), -a.min().item()) / lam


def test_the_limits_are_minima():
    x, D, _ = problem(n=40, p=60)
    found = fista(x, D, 0.05, tol=1e-12, max_iter=50_000, positive=True)
    assert found.converged.all()
    assert kkt_violation(x, D, found.code, 0.05) < 1e-6
    assert kkt_violation(x, D, 1.01 * found.code, 0.05) > 1e-3  # the measure can fail
    assert kkt_violation(x, D, fista(x, D, 0.05).code, 0.05) > 1e-3
    found = elastic_net(x, D, 0.05, 0.02, tol=1e-12, max_iter=50_000, positive=True)
    assert kkt_violation(x, D, found.code, 0.05, 0.02) < 1e-6


@pytest.mark.parametrize("lam", [0.02, 0.3])
def test_the_l1_minimum_is_that_of_spams_and_of_scikit_learn(lam):
    np = pytest.importorskip("numpy")
    x, D, _ = problem(n=40, p=60)
    ours = fista(x, D, lam, tol=1e-10, max_iter=20_000, positive=True)
    assert (ours.code == 0).any(1).all()
    decomposition = pytest.importorskip("sklearn.decomposition")
    for algorithm in ("lasso_lars", "lasso_cd"):
        coder = decomposition.SparseCoder(
            D.T.numpy(), transform_algorithm=algorithm, transform_alpha=lam, positive_code=True,
            transform_max_iter=100_000,
        )  # fmt: skip
        near = 1e-6 if algorithm == "lasso_lars" else 2e-2  # its tolerance is fixed
        theirs = torch.from_numpy(coder.fit(x.numpy()).transform(x.numpy()))
        torch.testing.assert_close(ours.code, theirs, atol=near, rtol=near)
    spams = pytest.importorskip("spams", reason="the package spams-bin is not installed")
    X, A = (np.asfortranarray(t.numpy()) for t in (x.T, D))
    theirs = spams.lasso(X, A, lambda1=lam, mode=2, pos=True, numThreads=1).toarray().T
    torch.testing.assert_close(ours.code, torch.from_numpy(theirs.copy()), atol=1e-6, rtol=1e-6)


def test_the_elastic_net_is_that_of_spams():
    np = pytest.importorskip("numpy")
    spams = pytest.importorskip("spams", reason="the package spams-bin is not installed")
    x, D, _ = problem(n=40, p=60)
    X, A = (np.asfortranarray(t.numpy()) for t in (x.T, D))
    options = dict(lambda1=0.1, lambda2=0.03, mode=2, pos=True, numThreads=1)
    theirs = torch.from_numpy(spams.lasso(X, A, **options).toarray().T.copy())
    ours = elastic_net(x, D, 0.1, 0.03, tol=1e-11, max_iter=20_000, positive=True).code
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_one_step_with_orthogonal_atoms_is_scikit_learns_threshold():
    decomposition = pytest.importorskip("sklearn.decomposition")
    g = torch.Generator().manual_seed(0)
    D = torch.linalg.qr(torch.randn(12, 12, generator=g, dtype=torch.float64))[0]
    x = torch.randn(20, 12, generator=g, dtype=torch.float64)
    coder = decomposition.SparseCoder(
        D.T.numpy(), transform_algorithm="threshold", transform_alpha=0.3, positive_code=True
    )
    theirs = torch.from_numpy(coder.fit(x.numpy()).transform(x.numpy()))
    ours = fista(x, D, 0.3, tol=1e-12, positive=True)
    torch.testing.assert_close(ours.code, theirs, atol=1e-9, rtol=1e-9)


# Each size takes another form of the products of fista and iht.
FORMS = {
    "rows": dict(n=60, p=80, k=4, rows=100),
    "residual": dict(n=30, p=100, k=4, rows=300),
    "no gram": dict(n=20, p=700, k=4, rows=9),
    "one": dict(n=1, p=1, k=1, rows=1),
    "odd": dict(n=17, p=33, k=2, rows=19),
}


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_iteration_of_fista_follows_the_float64_reference(form, dtype, start):
    x, D, _ = problem(**FORMS[form], dtype=dtype)
    n, p = D.shape
    mu = 1 / squared_norm(D)
    init = torch.rand(len(x), p, dtype=dtype) * (torch.rand(len(x), p) < 0.3) if start else None
    more = dict(init=init) if start else {}
    for k in (1, 2, 3, 6, 13):
        want = dk.reference.fista(
            x.double(), D.double(), None if init is None else init.double(), 1e-3, mu, 1e-30, k,
            True, True,
        )  # fmt: skip
        assert (want[0] >= 0).all()
        for history in (True, False):
            got = fista(x, D, 1e-3, max_iter=k, tol=1e-30, positive=True, history=history, **more)
            if k < 5:  # rounding decides when a row stands still to the last bit
                assert torch.equal(got.iterations, want[1])
            size = x.abs() @ D.abs() + (0 if init is None else init.abs() @ (D.T @ D).abs())
            terms = mu * (size + want[0].to(dtype) @ (D.T @ D).abs())
            bound = (k + 1) * (n + p + 2) * torch.finfo(dtype).eps / 2 * terms.double().max()
            assert (got.code.double() - want[0]).abs().max() <= bound
            for which in (0, -1):
                scale = 1 + want[3][0].abs() + x.double().square().sum(1)
                off = (got.objective[which].double() - want[3][which]).abs()
                assert (off <= bound * scale / mu).all()


def test_the_penalty_falls_from_the_largest_positive_correlation():
    # Any step is below this tolerance, so the first look after the fall ends the row.
    x, D, _ = problem(rows=20)
    x[:5] *= -1  # their largest correlations are negative
    for backend in ("cpu", "reference"):
        with dk.use_backend(backend):
            found = fista(x, D, 1e-6, tol=10.0, positive=True)
        falls = ((x @ D).amax(1) / 1e-6).log() / math.log(1 / 0.8)
        assert (found.iterations >= falls).all(), backend
        assert (found.iterations <= falls + 6).all(), backend


@every_solver
def test_a_start_counts_by_its_positive_part(name):
    if name in ("omp", "elastic_net"):
        return
    x, D, code = problem()
    init = 0.9 * code - 0.4 * (code == 0)
    for k in (1, 5):
        for backend in ("cpu", "reference"):
            with dk.use_backend(backend):
                options = dict(max_iter=k, tol=1e-30, positive=True)
                got = SOLVERS[name](x, D, init=init, **options)
                want = SOLVERS[name](x, D, init=init.clamp_min(0), **options)
            assert torch.equal(got.dense, want.dense)
            assert torch.equal(got.objective, want.objective)
    if name == "iht_m":
        values, indices = dk.top_m(init, 7)
        again = iht_m(x, D, 4, init=SparseCode(values, indices, 50), max_iter=3, positive=True)
        assert_plus_zero(again.dense)


# Hard thresholding.


def objective(x, D, a, lam=0.0):
    return 0.5 * (x - a @ D.T).square().sum(-1) + lam * (a != 0).sum(-1)


@pytest.mark.parametrize("init", ["zero", "l1"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_objective_falls_whatever_the_step(step, init, dtype):
    x, D, _ = problem(dtype=dtype)
    D = 5 * D
    slack = 1e-9 if dtype == torch.float64 else 1e-3
    for found, lam in (
        (iht(x, D, 0.1, step=step, init=init, positive=True), 0.1),
        (iht_m(x, D, 4, step=step, init=init, positive=True), 0.0),
    ):
        assert_plus_zero(found.dense)
        assert found.dense.any(1).double().mean() > 0.5
        assert found.objective.diff(dim=0).max() <= slack
        want = objective(x, D, found.dense, lam)
        torch.testing.assert_close(found.objective[-1], want, atol=slack, rtol=1e-3)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("n", [12, 30])
def test_codes_are_fixed_points(n, step):
    x, D, _ = problem(n=n)
    mu, options = safe_step(D), dict(step=step, tol=1e-13, max_iter=40_000, positive=True)
    found = iht(x, D, 0.05, init="l1", **options)
    a, theta = found.code[found.converged], math.sqrt(2 * 0.05 * mu)
    assert len(a) > 30
    u = a + mu * (x[found.converged] - a @ D.T) @ D
    torch.testing.assert_close(torch.where(u >= theta, u, 0.0), a, atol=1e-8, rtol=0)
    found = iht_m(x, D, 4, **options)
    a = found.dense[found.converged]
    assert len(a) > 30
    u = a + mu * (x[found.converged] - a @ D.T) @ D
    torch.testing.assert_close(dk.keep_top_m(u.relu(), 4), a, atol=1e-8, rtol=0)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        dict(n=60, p=80, k=4, rows=100),
        dict(n=400, p=1700, k=8, rows=600),
        dict(n=60, p=80, k=60, rows=100),
        dict(n=20, p=700, k=4, rows=9),
    ],
)
def test_native_iht_follows_the_reference(form, start):
    x, D, code = problem(**form)
    options = dict(max_iter=12, tol=1e-4, init=0.9 * code if start else "zero", positive=True)
    for solve, sparsity in ((iht_m, form["k"]), (iht, 0.05 if form["k"] < 60 else 1e-4)):
        got = solve(x, D, sparsity, **options)
        with dk.use_backend("reference"):
            want = solve(x, D, sparsity, **options)
        assert torch.equal(got.dense != 0, want.dense != 0)
        torch.testing.assert_close(got.dense, want.dense, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(got.objective, want.objective, atol=1e-9, rtol=1e-9)
        assert torch.equal(got.iterations, want.iterations)
        assert torch.equal(got.converged, want.converged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iht_m_has_m_entries_and_ties_go_to_the_lowest(dtype):
    D = torch.eye(40, dtype=dtype)
    x = torch.ones(6, 40, dtype=dtype)
    x[:, ::2] = -1
    for backend in ("cpu", "reference"):
        with dk.use_backend(backend):
            for m, want in ((3, [1, 3, 5]), (40, list(range(40)))):
                code = iht_m(x, D, m, max_iter=2, positive=True).code
                assert code.indices.tolist() == [want] * 6
            # Twenty are positive; of the others, which are 0, the lowest.
            code = iht_m(x, D, 23, max_iter=2, positive=True).code
            assert code.indices[0].tolist() == sorted([0, 2, 4, *range(1, 40, 2)])
            assert_plus_zero(code.values)


# Matching pursuit.


def naive_omp(x: Tensor, D: Tensor, m: int, tol: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The pursuit as it is written, with SciPy's nonnegative least squares: codes with at most
    1, .., m atoms [m, B, p], and how many it took."""
    nnls = pytest.importorskip("scipy.optimize").nnls
    norms = D.norm(dim=0)
    unit = D / norms
    codes, counts = torch.zeros(m, len(x), D.shape[1], dtype=x.dtype), []
    for i, row in enumerate(x):
        support: list[int] = []
        residual = row
        for k in range(m):
            correlation = residual @ unit
            correlation[support] = -1
            if not correlation.max() > tol * row.norm():
                break
            support.append(int(correlation.argmax()))
            a = torch.from_numpy(nnls(unit[:, support].numpy(), row.numpy())[0])
            residual = row - unit[:, support] @ a
            codes[k:, i] = 0
            codes[k:, i, support] = a / norms[support]
        counts.append(len(support))
    return codes, torch.tensor(counts)


@pytest.mark.parametrize("kind", ["signed atoms", "nonnegative atoms", "nonnegative"])
@pytest.mark.parametrize("rows", [1, 3, 60])  # few rows take the residual form, many the Gram form
@pytest.mark.parametrize(
    ("n", "p", "m"), [(1, 1, 1), (7, 5, 5), (30, 50, 12), (30, 50, 30), (31, 257, 20)]
)
def test_the_pursuit_is_the_one_that_is_written(n, p, m, rows, kind):
    g = torch.Generator().manual_seed(n + rows)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    if kind != "signed atoms":
        D = D.abs() + 0.1  # they have much in common: coefficients come and go
    if kind == "nonnegative":
        x = x.abs()
    course, counts = naive_omp(x, D, m)
    want = course[-1]
    for backend in ("cpu", "reference"):
        with dk.use_backend(backend):
            found = omp(x, D, m, positive=True)
        assert dk.last_call().backend == backend
        torch.testing.assert_close(found.dense, want, rtol=1e-8, atol=1e-9)
        assert torch.equal(found.iterations, counts)
        assert found.converged.all()
        assert found.objective.shape == (m + 1, rows)
        torch.testing.assert_close(found.objective[-1], objective(x, D, want))
        assert found.objective.diff(dim=0).max() <= 1e-12
        assert found.code.indices.shape == (rows, m)
        # Entries left over are at the lowest indices.
        assert torch.equal(found.code.indices, dk.top_m(found.dense, m)[1])
        assert_plus_zero(found.code.values)


def test_atoms_leave_and_come_back():
    """What the test above rests on: coefficients that become 0 on the way, and positive again."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=g, dtype=torch.float64)
    D = torch.randn(20, 30, generator=g, dtype=torch.float64)
    want, _ = naive_omp(x, D, 20)
    used = (want > 0).int()
    left = used.diff(dim=0) < 0
    back = (used.diff(dim=0) > 0) & (used.cumsum(0)[:-1] > 0)
    assert left.any(2).any(0).sum() > 30
    assert back.any(2).any(0).sum() > 15
    for m in (8, 14, 20):
        for rows in (slice(0, 4), slice(None)):
            found = omp(x[rows], D, m, positive=True)
            torch.testing.assert_close(found.dense, want[m - 1][rows], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rows", [2, 200])
def test_the_values_are_nonnegative_least_squares_on_the_support(rows):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 64, generator=g, dtype=torch.float64)
    D = torch.randn(64, 300, generator=g, dtype=torch.float64)
    D /= D.norm(dim=0)
    exact = omp(x, D, 30, positive=True)
    found = omp(x.float(), D.float(), 30, positive=True)
    same = (found.code.indices == exact.code.indices).all(1)
    assert same.double().mean() >= 0.9
    torch.testing.assert_close(found.dense[same].double(), exact.dense[same], rtol=1e-3, atol=1e-4)
    slope = (x - exact.dense @ D.T) @ D
    inside = exact.dense > 0
    assert slope[inside].abs().max() < 1e-12
    slope = (x.float() - found.dense @ D.float().T) @ D.float()
    assert slope[found.dense > 0].abs().max() < 1e-4


def test_where_no_coefficient_would_be_negative_it_is_the_plain_pursuit():
    x, D, code = planted(n=60, p=80, rows=200)
    x = code.abs() @ D.T
    plain, found = omp(x, D, 4), omp(x, D, 4, positive=True)
    same = (plain.dense >= 0).all(1)
    assert same.sum() > 150
    assert torch.equal(plain.code.values[same], found.code.values[same])
    assert torch.equal(plain.code.indices[same], found.code.indices[same])
    assert torch.equal(plain.iterations[same], found.iterations[same])


@pytest.mark.parametrize("rows", [2, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_dictionaries_end(rows, dtype):
    x, D, _ = problem(n=12, p=20, rows=rows, dtype=dtype)
    D[:, 3:9] = D[:, :1] * torch.tensor([1.0, -1, 2, 0.5, 3, 1], dtype=dtype)
    D[:, 9] = 0
    D[6:] = 0  # rank 6
    x[0] = 0
    found = omp(x, D, 10, positive=True)
    assert found.iterations[0] == 0
    assert found.dense.isfinite().all()
    assert_plus_zero(found.dense)
    assert ((found.dense[:, [0, 3, 5, 6, 7, 8]] > 0).sum(1) <= 1).all()
    assert not found.dense[:, 9].any()
    if dtype == torch.float64:
        with dk.use_backend("reference"):
            want = omp(x, D, 10, positive=True)
        torch.testing.assert_close(found.dense @ D.T, want.dense @ D.T, rtol=1e-9, atol=1e-9)
        assert torch.equal(found.iterations, want.iterations)
        assert torch.equal(found.converged, want.converged)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("gap", [1e-7, 1e-5, 1e-3])
def test_atoms_that_nearly_coincide(gap, backend):
    """Least squares on them are all but singular: atoms leave for rounding, and it ends."""
    g = torch.Generator().manual_seed(0)
    half = torch.randn(16, 12, generator=g).abs()
    D = torch.cat((half, half + gap * torch.randn(16, 12, generator=g)), 1)
    x = torch.randn(100, 16, generator=g).abs()
    for rows in (2, 100):
        with dk.use_backend(backend):
            found = omp(x[:rows], D, 16, positive=True, tol=1e-9)
        assert found.dense.isfinite().all()
        assert_plus_zero(found.dense)
        want = objective(x[:rows].double(), D.double(), found.dense.double()).float()
        torch.testing.assert_close(found.objective[-1], want, rtol=1e-4, atol=1e-4)


def test_equal_correlations_go_to_the_lowest_index():
    x = torch.ones(50, 40)
    x[:, ::2] = -1
    for rows in (1, 50):
        code = omp(x[:rows], torch.eye(40), 5, positive=True).code
        assert torch.equal(code.indices, torch.arange(1, 11, 2).expand(rows, 5))


@pytest.mark.parametrize("rows", [3, 300])
def test_the_number_of_threads_does_not_matter(rows):
    g = torch.Generator().manual_seed(5)
    D, x = torch.randn(40, 200, generator=g).abs(), torch.randn(rows, 40, generator=g).abs()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append([SOLVERS[name](x, D, positive=True) for name in ("omp", "fista")])
        finally:
            torch.set_num_threads(1)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one.dense, three.dense)
        assert torch.equal(one.objective, three.objective)


# What is made of them.


def test_the_gradient_of_nonnegative_elastic_nets():
    g = torch.Generator().manual_seed(1)
    D = torch.randn(8, 12, generator=g, dtype=torch.float64)
    x = torch.randn(5, 8, generator=g, dtype=torch.float64)
    net = TaskDrivenDictionary(D, 3, lam=0.1, lam2=0.05, positive=True, tol=1e-12, max_iter=5_000)
    codes = net.encode(x)
    assert_plus_zero(codes)
    assert (codes > 0).any(1).all()
    assert "positive=True" in repr(net)
    with torch.no_grad():
        net.head.weight.normal_(generator=g)
    D = net.D.detach().clone()

    def loss(x, D):
        net.D.data = D.detach()
        return torch.func.functional_call(net, {"D": D}, (x,)).square().sum()

    assert torch.autograd.gradcheck(
        loss, (x.requires_grad_(), D.requires_grad_()), eps=1e-6, atol=1e-5
    )


@pytest.mark.parametrize(
    "kind", [dict(m=3), dict(lam=0.1), dict(method="l1", lam=0.1), dict(method="mod", m=3)]
)
def test_a_dictionary_for_nonnegative_codes_serves_them_better(kind):
    g = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(16, 24, generator=g), dim=0)
    code = torch.rand(600, 24, generator=g) + 0.5
    code *= torch.rand(600, 24, generator=g).argsort(1) < 3
    x = code @ truth.T
    options = dict(epochs=12, batch_size=100, **kind)
    ours = learn_dictionary(x, 24, positive=True, **options)
    other = learn_dictionary(x, 24, **options)
    assert ours.loss[-1] < 0.8 * ours.loss[0]

    def value(D: Tensor) -> float:
        unit = D / D.norm(dim=0)
        return omp(x, unit, 3, positive=True).objective[-1].mean().item()

    assert value(ours.D) < value(other.D)


@pytest.mark.parametrize("kind", [dict(m=3), dict(lam=0.1), dict(method="mod", m=3)])
def test_the_objective_of_a_batch_is_that_of_its_nonnegative_codes(kind):
    x, _, _ = problem(rows=60)
    learner = DictionaryLearner(30, num_stages=3, positive=True, **kind)
    learner.begin(x)
    D = learner._update.D.detach().clone()
    found = learner.partial_fit(x)
    options = dict(max_iter=3, tol=1e-300, positive=True)
    if kind.get("method") == "mod":
        want = omp(x, D, 3, positive=True).objective[-1]
    elif "m" in kind:
        want = iht_m(x, D, 3, step=1.0, **options).objective[-1]
    else:
        want = iht(x, D, 0.1, step=1.0, **options).objective[-1]
    assert found == pytest.approx(want.mean().item(), rel=1e-9)


def test_states_of_before_there_was_a_choice_are_signed():
    x, _, _ = planted(n=20, p=30, rows=100)
    learner = DictionaryLearner(10, method="mod", m=2)
    learner.partial_fit(x)
    state = learner.state_dict()
    del state["options"]["positive"]
    again = DictionaryLearner(10, method="mod", m=2)
    again.load_state_dict(state)
    assert again.partial_fit(x) == learner.partial_fit(x)
    with pytest.raises(ValueError, match="state is of positive = False, got positive = True"):
        DictionaryLearner(10, method="mod", m=2, positive=True).load_state_dict(state)
