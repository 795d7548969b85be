"""IHT: descent, fixed points, the encoders it unrolls to, options, errors."""

from __future__ import annotations

import math

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import iht, iht_m, niht
from deepl0_kernels.solvers.step import safe_step, squared_norm

from .problems import planted

STEPS = ("lipschitz", "normalized", "accelerated")
INITS = ("zero", "l1")


def objective(x, D, a, lam=0.0):
    return 0.5 * (x - a @ D.T).square().sum(-1) + lam * (a != 0).sum(-1)


def assert_never_rises(history, slack):
    assert (history[1:] - history[:-1]).max() <= slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("step", STEPS)
def test_the_objective_falls_and_is_the_objective(step, init, dtype):
    x, D, _ = planted(dtype=dtype)
    D = 5 * D  # the norm is the solver's business, not the caller's
    slack = 1e-9 if dtype == torch.float64 else 1e-3
    r = iht(x, D, 0.1, step=step, init=init)
    assert_never_rises(r.objective, slack)
    torch.testing.assert_close(r.objective[-1], objective(x, D, r.code, 0.1), atol=slack, rtol=1e-3)
    r = iht_m(x, D, 4, step=step, init=init)
    assert_never_rises(r.objective, slack)
    torch.testing.assert_close(r.objective[-1], objective(x, D, r.dense), atol=slack, rtol=1e-3)
    assert r.objective.shape == (int(r.iterations.max()) + 1, len(x))


@pytest.mark.parametrize("n", [12, 30])
def test_codes_are_fixed_points(n):
    # n = 12, p = 50 takes the residual form, n = 30 the Gram form.
    x, D, _ = planted(n=n)
    mu = safe_step(D)
    r = iht(x, D, 0.05, init="l1", tol=1e-12, max_iter=20000)
    assert r.converged.all()
    u = r.code + mu * (x - r.code @ D.T) @ D
    torch.testing.assert_close(
        dk.hard_threshold(u, math.sqrt(2 * 0.05 * mu)), r.code, atol=1e-9, rtol=0
    )
    r = iht_m(x, D, 4, tol=1e-12, max_iter=20000)
    a = r.dense
    torch.testing.assert_close(dk.keep_top_m(a + mu * (x - a @ D.T) @ D, 4), a, atol=1e-9, rtol=0)


@pytest.mark.parametrize("step", STEPS)
def test_a_planted_code_is_found_from_l1(step):
    x, D, code = planted(n=60, p=80)
    r = iht_m(x, D, 4, init="l1", step=step, l1_lam=0.02)
    assert ((r.dense != 0) == (code != 0)).all(1).double().mean() > 0.95
    assert (r.dense - code).abs().max() < 0.1 or step == "normalized"


@pytest.mark.parametrize("step", ["normalized", "accelerated"])
def test_other_steps_need_fewer_iterations(step):
    x, D, _ = planted(n=60, p=80)
    plain = iht_m(x, D, 4, init="l1", l1_lam=0.02)
    fast = iht_m(x, D, 4, init="l1", l1_lam=0.02, step=step)
    assert fast.iterations.double().mean() < 0.7 * plain.iterations.double().mean()


def normalized(x, D, select, k, start=None):
    """NIHT of one signal, by dense products."""
    safe, alone = safe_step(D), 1 / D.square().sum(0).max()
    a = torch.zeros(D.shape[1], dtype=D.dtype) if start is None else start
    for _ in range(k):
        g = D.T @ (x - D @ a)
        support = (a if a.any() else select(alone * g, alone)) != 0
        along = torch.where(support, g, 0.0)
        mu = safe
        if along.any():
            mu = max(safe, along.square().sum() / (D @ along).square().sum())
        while True:
            new = select(a + mu * g, mu)
            change = new - a
            allowed = 0.99 * change.square().sum() / (D @ change).square().sum()
            if mu <= allowed or mu == safe:
                break
            mu = max(safe, mu / 2)
        a = new
    return a


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_normalized_steps_are_those_of_dense_products(k, start, positive):
    x, D, _ = planted(rows=40)
    D = D * torch.linspace(0.5, 3, D.shape[1], dtype=D.dtype)
    part = torch.relu if positive else (lambda u: u)
    lam, init = 0.05, dk.keep_top_m(part(x @ D), 6)
    init[:5] = 0  # starts from 0 among others, and from supports of two that grow
    init[5:15] = dk.keep_top_m(init[5:15], 2)
    options = dict(step="normalized", max_iter=k, tol=1e-300, positive=positive)
    options |= dict(init=init) if start else {}
    for found, select, begin in (
        (iht_m(x, D, 4, **options).dense, lambda u, mu: dk.keep_top_m(part(u), 4), 4),
        (iht_m(x, D, 30, **options).dense, lambda u, mu: dk.keep_top_m(part(u), 30), 30),
        (iht(x, D, lam, **options).code,
         lambda u, mu: torch.where(part(u).abs() >= (2 * lam * mu) ** 0.5, part(u), 0.0), 50),
    ):  # fmt: skip
        for row, code, first in zip(x, found, dk.keep_top_m(init, begin), strict=True):
            want = normalized(row, D, select, k, first if start else None)
            assert torch.equal(code != 0, want != 0)
            torch.testing.assert_close(code, want)


def test_the_change_of_sparse_codes_is_that_of_dense_ones():
    old, at = torch.tensor([[1.0, 2.0, 0.0]] * 4), torch.tensor([[0, 3, 5]] * 4)
    new = torch.tensor([[0.0, 5, 0], [2, 2, 7], [3, 4, 0], [1, 2, 0]])
    to = torch.tensor([[0, 2, 5], [0, 3, 5], [0, 3, 6], [0, 3, 5]])
    a, b = (dk.unpool(values, indices, 8) for values, indices in ((old, at), (new, to)))
    assert torch.equal(niht._change(a, old, at, new, to), (b - a).square().sum(1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_iterations_are_the_encoder_with_k_stages(k):
    x, D, _ = planted()
    options = dict(max_iter=k, tol=1e-300)
    with torch.no_grad():
        l0 = dk.nn.DeepL0Encoder.from_dictionary(D, 0.05, num_stages=k).eval()
        torch.testing.assert_close(l0(x), iht(x, D, 0.05, **options).code)
        m_sparse = dk.nn.DeepMSparseEncoder.from_dictionary(D, 4, num_stages=k).eval()
        torch.testing.assert_close(m_sparse(x), iht_m(x, D, 4, **options).dense)


def test_results_do_not_depend_on_the_batch():
    x, D, _ = planted(rows=50)
    whole = iht(x, D, 0.05, tol=1e-10)
    for i in (0, 17, 49):
        alone = iht(x[i], D, 0.05, tol=1e-10)
        torch.testing.assert_close(alone.code, whole.code[i])
        assert alone.iterations == whole.iterations[i]
        assert alone.code.shape == (50,)


def test_more_rows_than_a_block(monkeypatch):
    from deepl0_kernels.reference import descent

    x, D, _ = planted(rows=50)
    whole = iht_m(x, D, 4)
    monkeypatch.setattr(descent, "ROWS", 16)
    parts = iht_m(x, D, 4)
    torch.testing.assert_close(whole.dense, parts.dense)
    torch.testing.assert_close(whole.objective, parts.objective)
    assert torch.equal(whole.iterations, parts.iterations)


# Each size takes another form of the product: D'D in L2, D'D by column panels, the dense product
# with D'D, the residual.
FORMS = {
    "rows": dict(n=60, p=80, k=4, rows=100),
    "panels": dict(n=400, p=1700, k=8, rows=600),
    "dense": dict(n=60, p=80, k=60, rows=100),
    "residual": dict(n=20, p=700, k=4, rows=9),
}


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_native_follows_the_reference(form, start):
    # float64 and 12 iterations: a near-tie of random data is far above rounding.
    size = FORMS[form]
    x, D, code = planted(**size)
    options = dict(max_iter=12, tol=1e-4, init=0.9 * code if start else "zero")
    for solve, sparsity in ((iht_m, size["k"]), (iht, 0.05 if form != "dense" else 1e-4)):
        got = solve(x, D, sparsity, **options)
        with dk.use_backend("reference"):
            want = solve(x, D, sparsity, **options)
        assert torch.equal(got.dense != 0, want.dense != 0)
        torch.testing.assert_close(got.dense, want.dense, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(got.objective, want.objective, atol=1e-9, rtol=1e-9)
        assert torch.equal(got.iterations, want.iterations)
        assert torch.equal(got.converged, want.converged)


@pytest.mark.parametrize("form", FORMS)
def test_float32_history_is_the_objective_and_never_rises(form):
    size = FORMS[form]
    x, D, _ = planted(**size, dtype=torch.float32)
    for k in (1, 3):
        for solve, sparsity, lam in ((iht_m, size["k"], 0.0), (iht, 0.05, 0.05)):
            r = solve(x, D, sparsity, max_iter=k, tol=1e-30)
            assert r.objective.shape == (k + 1, len(x))
            want = objective(x.double(), D.double(), r.dense.double(), lam).float()
            torch.testing.assert_close(r.objective[-1], want, atol=1e-3, rtol=1e-3)
            assert_never_rises(r.objective, 1e-3)


@pytest.mark.parametrize("form", ["rows", "panels"])
def test_the_sparse_paths_give_the_same_bits_for_any_number_of_threads(form):
    size = FORMS[form]
    x, D, _ = planted(**size, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(iht_m(x, D, size["k"], max_iter=20, tol=1e-4))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(found[0].code.values, other.code.values)
        assert torch.equal(found[0].code.indices, other.code.indices)
        assert torch.equal(found[0].objective, other.objective)
        assert torch.equal(found[0].iterations, other.iterations)


def test_rows_that_converge_repeat_their_last_value():
    x, D, _ = planted(rows=100)
    r = iht_m(x, D, 4, tol=1e-6, max_iter=3000)  # more iterations than a block of the history
    assert r.converged.all()
    assert int(r.iterations.max()) > 64
    last = r.objective.gather(0, r.iterations[None])[0]
    assert torch.equal(last, r.objective[-1])
    for row in (0, 50):
        k = int(r.iterations[row])
        assert (r.objective[k:, row] == r.objective[k, row]).all()
    brief = iht_m(x, D, 4, tol=1e-6, max_iter=3000, history=False)
    assert torch.equal(brief.objective, r.objective[[0, -1]])
    assert torch.equal(brief.dense, r.dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "p", "m", "rows"), [(1, 1, 1, 1), (3, 7, 7, 5), (17, 33, 2, 19)])
def test_odd_sizes_all_entries_and_codes_with_zeros(n, p, m, rows, dtype):
    x, D, code = planted(n=n, p=p, k=1, rows=rows, dtype=dtype)
    x[0] = 0  # every entry ties: the lowest indices are kept
    for init in ("zero", code):
        got = iht_m(x, D, m, init=init, max_iter=7, tol=1e-30)
        with dk.use_backend("reference"):
            want = iht_m(x, D, m, init=init, max_iter=7, tol=1e-30)
        torch.testing.assert_close(got.dense, want.dense, atol=1e-4, rtol=1e-4)
        assert torch.equal(got.converged, want.converged) or dtype == torch.float32
    assert torch.equal(iht_m(x[:1], D, m, max_iter=2).code.indices, torch.arange(m)[None])


def test_leading_dimensions_history_and_given_starts():
    x, D, _ = planted(rows=24)
    r = iht_m(x.reshape(2, 3, 4, 30), D, 4, history=False)
    assert isinstance(r.code, dk.SparseCode)
    assert r.code.values.shape == (2, 3, 4, 4)
    assert r.converged.shape == (2, 3, 4)
    assert r.objective.shape == (2, 2, 3, 4)
    torch.testing.assert_close(
        r.objective[-1], objective(x, D, r.dense.flatten(0, -2)).reshape(2, 3, 4)
    )
    again = iht_m(x.reshape(2, 3, 4, 30), D, 4, init=r.code)
    torch.testing.assert_close(again.dense, r.dense, atol=1e-4, rtol=0)
    assert int(again.iterations.max()) <= 5
    start = iht(x, D, 0.05).code
    assert int(iht(x, D, 0.05, init=start).iterations.max()) <= 5
    empty = iht(x[:0], D, 0.05)
    assert empty.code.shape == (0, 50)
    assert empty.iterations.shape == (0,)


def test_a_dictionary_that_is_a_part_of_a_larger_one():
    x, D, _ = planted()
    part = torch.nn.functional.pad(D, (3, 2), value=7.0)[:, 3:-2]
    assert part.stride() == (55, 1)
    torch.testing.assert_close(iht(x, part, 0.05).code, iht(x, D, 0.05).code)
    torch.testing.assert_close(iht_m(x, part, 4).dense, iht_m(x, D, 4).dense)


def test_a_sample_that_ran_out_of_iterations_says_so():
    x, D, _ = planted()
    r = iht(x, D, 0.05, max_iter=3, tol=1e-12)
    assert not r.converged.any()
    assert (r.iterations == 3).all()


def test_a_step_that_is_too_long_is_an_error_not_a_divergence():
    x, D, _ = planted()
    with pytest.raises(RuntimeError, match="step is too large"):
        iht(x, D, 0.001, step=4 / squared_norm(D))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (1100, 1200)])
def test_the_norm_is_bounded_from_above(shape):
    g = torch.Generator().manual_seed(0)
    D = torch.randn(*shape, generator=g)
    true = torch.linalg.matrix_norm(D.double(), 2).item() ** 2
    assert true * (1 - 1e-9) <= squared_norm(D) <= true * 1.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(lam=0.0), "lam must be a finite number > 0, got 0.0"),
        (dict(lam=float("nan")), "lam must be a finite number > 0, got nan"),
        (dict(step="newton"), "step must be one of .* got 'newton'"),
        (dict(step=-1.0), "step must be a finite number > 0, got -1.0"),
        (dict(init="warm"), "init must be one of .* got 'warm'"),
        (dict(init=torch.zeros(3, 3, dtype=torch.float64)), "init must have shape"),
        (
            dict(init=torch.full((40, 50), torch.nan, dtype=torch.float64)),
            "init must be finite, got 2000",
        ),
        (dict(tol=0.0), "tol must be a finite number > 0, got 0.0"),
        (dict(max_iter=0), "max_iter must be >= 1, got 0"),
        (
            dict(D=torch.full((30, 50), torch.nan, dtype=torch.float64)),
            "D must be finite, got 1500",
        ),
        (dict(D=torch.zeros(30, 50, dtype=torch.float64)), "D must not be all 0"),
        (dict(D=torch.ones(31, 50, dtype=torch.float64)), "x must be .* n = 31"),
        (dict(x=torch.full((2, 30), torch.inf, dtype=torch.float64)), "x must be finite, got 60"),
        (dict(x=torch.ones(2, 30)), "x must have the dtype of D"),
    ],
)
def test_bad_arguments(change, message):
    x, D, _ = planted()
    arguments = dict(x=x, D=D, lam=0.1) | change
    with pytest.raises(ValueError, match=message):
        iht(**arguments)


@pytest.mark.parametrize("m", [0, 51])
def test_bad_m(m):
    x, D, _ = planted()
    with pytest.raises(ValueError, match=rf"m must be >= 1.*got {m}"):
        iht_m(x, D, m)


@pytest.mark.parametrize("history", [False, True])
def test_the_operators_take_a_dictionary_without_atoms(history):
    x, D = torch.ones(2, 3), torch.ones(3, 0)
    code, *_, objective = torch.ops.deepl0.iht_l0(x, D, None, 0.1, 1.0, 0.1, 2, history)
    assert code.shape == (2, 0)
    assert torch.equal(objective[-1], torch.full((2,), 1.5))
    values, indices, *_ = torch.ops.deepl0.iht_top_m(x, D, None, None, 0, 1.0, 0.1, 2, history)
    assert values.shape == indices.shape == (2, 0)
