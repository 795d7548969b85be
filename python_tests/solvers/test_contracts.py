"""What all solvers promise alike: honest objectives, any scale, no ambient modes, named errors."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import SparseCode, solvers
from deepl0_kernels.solvers import (
    DictionaryLearner,
    TaskDrivenDictionary,
    analytic_weights,
    cosamp,
    eigengap,
    elastic_net,
    fista,
    graph_laplacian,
    graph_sparse_code,
    htp,
    iht,
    iht_m,
    knn_affinity,
    learn_dictionary,
    omp,
    polish,
    squared_norm,
    support_margin,
)

from .entries import CODES, ENTRIES, laplacian


def test_nothing_public_is_left_out():
    assert set(ENTRIES) == set(solvers.__all__) - {"DictionaryResult", "SolverResult"}
    assert {name.split()[0] for name in CODES} < set(ENTRIES)


def twins(gap, dtype, rows=30):
    """Each atom twice, almost, and two atoms that are 0."""
    g = torch.Generator().manual_seed(0)
    half = torch.randn(16, 12, generator=g, dtype=torch.float64)
    near = half + gap * torch.randn(16, 12, generator=g, dtype=torch.float64)
    D = torch.cat((half, near, torch.zeros(16, 2, dtype=torch.float64)), 1)
    return torch.randn(rows, 16, generator=g, dtype=torch.float64).to(dtype), D.to(dtype)


def objective(x, D, a, name, weight):
    """In float64, and docs/numerics.md's bound of what is reported."""
    x, D, a = x.double(), D.double(), a.double()
    residual = x - a @ D.T
    value = 0.5 * residual.square().sum(1)
    k, n = (a != 0).sum(1), len(D)
    off = (k + 2)[:, None] * (x.abs() + a.abs() @ D.abs().T)
    penalty = torch.zeros_like(value)
    kind = name.split()[0]
    if kind == "iht":
        penalty = weight * k.double()
    elif kind in ("fista", "elastic_net", "graph_sparse_code"):
        penalty = weight * a.abs().sum(1)
    if kind == "elastic_net":
        penalty = penalty + 0.5e-4 * a.square().sum(1)
    if kind == "graph_sparse_code":
        penalty = penalty + 0.25 * (a * (laplacian(x) @ a)).sum() / len(x)
    eps = torch.finfo(torch.float64).eps / 2

    def bound(u):
        e = u * off.norm(dim=1)
        return (
            residual.norm(dim=1) * e
            + e.square() / 2
            + (n + 2 * D.shape[1]) * u * (value + penalty)
            + 100 * eps
        )

    return value + penalty, bound


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("name", CODES)
def test_objectives_with_atoms_that_nearly_coincide(name, gap, dtype, backend):
    x, D = twins(gap, dtype)
    solve, weight, _ = CODES[name]
    with dk.use_backend(backend):
        found = solve(x, D, weight)
    want, bound = objective(x, D, found.dense, name, weight)
    assert ((found.objective[-1].double() - want).abs() <= bound(torch.finfo(dtype).eps / 2)).all()
    assert (found.objective >= 0).all()
    assert (found.objective[-1] <= found.objective[0]).all()
    assert found.dense.isfinite().all()
    if name.endswith("positive"):
        assert (found.dense >= 0).all()
    if name in ("omp", "htp", "cosamp"):
        # No coefficients that cancel: an atom counts only beyond 10 sqrt(eps) of the others' span.
        limit = x.norm(dim=1).max() / (10 * torch.finfo(dtype).eps ** 0.5) / 2
        assert found.dense.abs().max() <= limit
        assert found.objective[-1].mean() < 0.65 * found.objective[0].mean()


@pytest.mark.parametrize("rows", [1, 200])  # both forms of the native pursuit
def test_a_pursuit_that_a_dependent_atom_ends_has_not_converged(rows):
    x, D = twins(1e-3, torch.float32, rows)
    for backend in ("cpu", "reference"):
        with dk.use_backend(backend):
            found = omp(x, D, 16)
        early = found.iterations < 16
        assert early.all()
        assert not found.converged.any()
        # As low as least squares on the first twins, which span what can be told apart.
        A = D[:, :12].double()
        rest = x.T.double() - A @ torch.linalg.lstsq(A, x.T.double()).solution
        whole = found.iterations == 12
        assert whole.double().mean() > 0.9
        torch.testing.assert_close(
            found.objective[-1].double()[whole],
            0.5 * rest.square().sum(0)[whole],
            rtol=3e-2,
            atol=0,
        )
    exact = omp(D[:, :3].T.contiguous(), D, 5)
    assert exact.converged.all()


def test_a_pursuit_whose_next_code_is_worse_ends_not_converged():
    # CoSaMP has no guarantee on a dictionary as coherent as this.
    x, D = twins(1e-2, torch.float64, 200)
    found = cosamp(x, D, 4)
    assert (found.objective.diff(dim=0) <= 0).all()
    stopped = ~found.converged
    assert stopped.any()
    assert found.converged.any()
    assert (found.iterations[stopped] < 100).any()


@pytest.mark.parametrize("lam2", [1e-2, 1e-9, 1e-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_with_equal_atoms(lam2, dtype):
    x, D = twins(0.0, dtype, 30)
    net = TaskDrivenDictionary(D, 2, lam=0.1, lam2=lam2, max_iter=300)
    with torch.no_grad():
        # The twins have the same say: what tells them apart is in no direction of the gradient.
        side = torch.linspace(-1, 1, 12, dtype=dtype)
        net.head.weight.copy_(
            torch.cat((side, side, side[:2])).expand(2, -1)
            * torch.tensor([[1.0], [-1.0]], dtype=dtype)
        )
    net.loss(x, torch.arange(30) % 2).backward()
    assert net.D.grad.isfinite().all()
    if lam2 == 1e-2:
        torch.testing.assert_close(net.D.grad[:, :12], net.D.grad[:, 12:24], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [dict(m=3), dict(lam=0.1), dict(method="l1", lam=0.1), dict(method="mod", m=3)]
)
def test_learners_with_equal_signals_report_no_negative_objective(kind):
    x = twins(1e-4, torch.float32)[1].T.contiguous()
    learner = DictionaryLearner(20, **kind)
    losses = [learner.partial_fit(x) for _ in range(4)]
    assert all(0 <= loss <= 0.5 * x.square().sum(1).mean() * 1.1 for loss in losses)
    assert learner.result().D.isfinite().all()


# Scales


def problem(dtype=torch.float32, rows=30):
    g = torch.Generator().manual_seed(3)
    D = torch.randn(16, 24, generator=g, dtype=torch.float64)
    x = torch.randn(rows, 16, generator=g, dtype=torch.float64)
    return x.to(dtype), (D / D.norm(dim=0)).to(dtype)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize(
    ("signal", "atom"),
    [
        (2.0**60, 1),
        (2.0**-80, 1),
        (1, 2.0**-50),
        (2.0**45, 2.0**50),
        (2.0**-120, 2.0**-60),
    ],
)
def test_codes_and_objectives_scale(name, signal, atom):
    x, D = problem()
    solve, weight, degree = CODES[name]
    if name.split()[0] in ("elastic_net", "graph_sparse_code") and atom != 1:
        return  # their second weight goes with ||D||^2
    want = solve(x.double(), D.double(), weight)
    # ||a||_1 grows as x / D, ||a||_0 not at all.
    scaled = weight * (signal * atom if degree == 1 else signal**degree)
    found = solve(x * signal, D * atom, scaled)
    got = found.dense.double() * (atom / signal)
    same = ((got != 0) == (want.dense != 0)).all(1)
    assert same.double().mean() >= 0.9
    torch.testing.assert_close(got[same], want.dense[same], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.converged[same], want.converged[same])
    if signal > 2.0**-60:
        last = found.objective[-1].double() / signal**2
        torch.testing.assert_close(last[same], want.objective[-1][same], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CODES if name != "graph_sparse_code"])
def test_each_signal_by_itself(name):
    x, D = problem()
    solve, weight, _ = CODES[name]
    mixed = x.clone()
    mixed[::3] *= 2.0**40
    mixed[1::3] *= 2.0**-50
    found = solve(mixed.reshape(5, 6, 16), D, weight)
    assert found.converged.shape == (5, 6)
    assert found.objective.shape[1:] == (5, 6)
    for at in (slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)):
        alone = solve(mixed[at], D, weight)
        torch.testing.assert_close(found.dense.flatten(0, 1)[at], alone.dense)
        assert torch.equal(found.iterations.flatten()[at], alone.iterations)
        torch.testing.assert_close(found.objective[-1].flatten()[at], alone.objective[-1])


@pytest.mark.parametrize("name", CODES)
def test_what_no_result_can_hold_is_refused_by_name(name):
    x, D = problem()
    solve, weight, _ = CODES[name]
    with pytest.raises(ValueError, match=r"x must have \|\|x\|\|\^2 / 2 within float32"):
        solve(x * 1e20, D, weight)
    with pytest.raises(ValueError, match=r"signals? of x must be 0 or have their largest entry"):
        solve(x.double() * 1e160, D.double(), weight)
    with pytest.raises(ValueError, match="D must have its largest entry"):
        solve(x.double(), D.double() * 1e-200, weight)
    if weight:
        with pytest.raises(ValueError, match=r"lam must be in .* got 1e\+300"):
            solve(x, D, 1e300)
        assert not solve(x, D, 1e30).dense.any()
        assert solve(x, D, 1e30).objective.isfinite().all()
    else:
        with pytest.raises(ValueError, match="the codes must fit float32"):
            solve(x * 2.0**50, D * 2.0**-120, weight)


def test_starts_steps_and_margins_of_any_scale():
    x, D = problem()
    want = iht_m(x, D, 4)
    for s in (2.0**50, 2.0**-50):
        again = iht_m(x * s, D, 4, init=want.dense * s)
        torch.testing.assert_close(again.dense / s, want.dense, rtol=0, atol=1e-3)
        code = SparseCode(want.code.values * s, want.code.indices, 24)
        margin = support_margin(x * s, D, code, m=4)
        torch.testing.assert_close(margin / s, support_margin(x, D, want.code, m=4))
    far = fista(x, D, 0.1, init=torch.full((30, 24), 1e15))
    assert far.objective.isfinite().all()
    with pytest.raises(ValueError, match="the objective must fit float32"):
        fista(x, D, 0.1, init=torch.full((30, 24), 1e25))
    with pytest.raises(ValueError, match="init must be at most"):
        iht(x.double(), D.double(), 0.1, init=torch.full((30, 24), 1e200, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"step must be in .* got 1e-200"):
        htp(x, D, 3, step=1e-200)


def test_graphs_of_any_scale():
    pytest.importorskip("sklearn")
    x, _ = problem()
    want = knn_affinity(x, 3)
    for s in (2.0**100, 2.0**-100):
        torch.testing.assert_close(knn_affinity(x * s, 3).to_dense(), want.to_dense())
        huge = knn_affinity(x.double() * s**8, 3)
        torch.testing.assert_close(huge.to_dense().float(), want.to_dense())
        L = graph_laplacian(want * s)
        torch.testing.assert_close(L.to_dense(), graph_laplacian(want).to_dense())
        assert eigengap(L, 2) == pytest.approx(eigengap(graph_laplacian(want), 2))
    with pytest.raises(ValueError, match="affinity must have degrees within"):
        graph_laplacian(3e38 * torch.ones(3, 3).to_sparse(), normalized=False)


@pytest.mark.parametrize("method", [dict(m=2), dict(method="l1", lam=0.1), dict(method="mod", m=2)])
def test_learners_refuse_signals_whose_gradients_have_no_scale(method):
    x, _ = problem()
    for scale, words in ((1e19, "<= 1e"), (1e-25, ">= 9.5e-07")):
        with pytest.raises(ValueError, match=f"x must have its largest entry {words}"):
            learn_dictionary(x * scale, 12, **method, batch_size=10)
    learner = DictionaryLearner(12, **method)
    learner.partial_fit(x)
    learner.partial_fit(torch.zeros_like(x))  # silence is no first batch


def test_unrolled_learning_does_not_depend_on_the_scale():
    x, _ = problem(torch.float64, 60)
    want = learn_dictionary(x, 24, m=3, epochs=4, batch_size=20)
    for s in (2.0**-14, 2.0**14):
        got = learn_dictionary(x * s, 24, m=3, epochs=4, batch_size=20)
        assert got.loss[-1] / s**2 == pytest.approx(want.loss[-1], rel=0.05)


@pytest.mark.parametrize("scale", [1e19, 1e30])
def test_long_atoms_are_shortened_whatever_their_length(scale):
    _, D = problem()
    net = TaskDrivenDictionary(D * scale, 2, lam=0.1)
    torch.testing.assert_close(net.D.norm(dim=0), torch.ones(24))
    small = TaskDrivenDictionary(D / scale, 2, lam=0.1)
    assert torch.equal(small.D, D / scale)


def test_thresholds_that_the_dtype_cannot_hold():
    u = torch.randn(5)
    for threshold in (dk.helu, dk.hard_threshold, dk.soft_threshold):
        for theta in (1e300, 1e-300):
            with pytest.raises(ValueError, match=r"within the range of torch\.float32"):
                threshold(u, theta)
        with pytest.raises(ValueError, match="theta must be within the range of float64"):
            threshold(u, 10**400)
        assert not threshold(u, float("inf")).any()
        threshold(u.double(), 1e300)


# Modes


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value.to_dense() if value.layout != torch.strided else value]
    if isinstance(value, solvers.SolverResult):
        return [value.dense, value.iterations, value.converged, value.objective]
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in leaves(part)]
    return [torch.tensor(value, dtype=torch.float64)]


class DefaultFloat64:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default dtype": DefaultFloat64,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ENTRIES)
def test_the_callers_modes_change_nothing(name, mode):
    if name == "knn_affinity":
        pytest.importorskip("sklearn")
    x, D = problem()
    want = leaves(ENTRIES[name](x, D))
    with MODES[mode]():
        if mode == "inference":
            x, D = x.clone(), D.clone()  # made in it
        got = leaves(ENTRIES[name](x, D))
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# Errors

X, ATOMS = problem()
GRAPH = laplacian(X)
CALLS = {
    "omp": (omp, dict(x=X, D=ATOMS, m=2, tol=1e-6, positive=True)),
    "htp": (htp, dict(x=X, D=ATOMS, m=2, tol=1e-6, step=0.1, max_iter=3)),
    "cosamp": (cosamp, dict(x=X, D=ATOMS, m=2, tol=1e-6, max_iter=3)),
    "iht": (
        iht,
        dict(x=X, D=ATOMS, lam=0.1, step=0.1, init="zero", tol=1e-6, max_iter=3, positive=True),
    ),
    "iht_m": (
        iht_m,
        dict(x=X, D=ATOMS, m=2, step=0.1, init="zero", l1_lam=0.1, tol=0.1, max_iter=3,
             positive=True),
    ),
    "fista": (
        fista, dict(x=X, D=ATOMS, lam=0.1, init="zero", tol=1e-6, max_iter=3, positive=True)
    ),
    "elastic_net": (
        elastic_net,
        dict(x=X, D=ATOMS, lam=0.1, lam2=0.1, tol=1e-6, max_iter=3, positive=True),
    ),
    "graph_sparse_code": (
        graph_sparse_code,
        dict(x=X, D=ATOMS, laplacian=GRAPH, lam=0.1, alpha=0.1, lam2=0.1, tol=0.1, max_iter=3),
    ),
    "support_margin": (support_margin, dict(x=X, D=ATOMS, code=X @ ATOMS, lam=0.1, step=0.1)),
    "support_margin of m": (support_margin, dict(x=X, D=ATOMS, code=X @ ATOMS, m=2)),
    "polish": (polish, dict(x=X, D=ATOMS, code=X @ ATOMS, lam=0.1, ridge=0.1)),
    "polish of m": (polish, dict(x=X, D=ATOMS, code=X @ ATOMS, m=2, ridge=0.1)),
    "squared_norm": (squared_norm, dict(D=ATOMS)),
    "analytic_weights": (analytic_weights, dict(D=ATOMS)),
    "knn_affinity": (knn_affinity, dict(x=X, neighbours=2, width=1.0)),
    "graph_laplacian": (graph_laplacian, dict(affinity=GRAPH)),
    "eigengap": (eigengap, dict(laplacian=GRAPH, clusters=2)),
    "learn_dictionary": (
        learn_dictionary,
        dict(x=X, p=4, m=2, num_stages=2, epochs=1, batch_size=10, lr=0.1, forgetting=1.0,
             patience=5, tol=0.1, max_iter=3, seed=0, method="unrolled", checkpoint=None,
             positive=True),
    ),
    "learn_dictionary by mod": (
        learn_dictionary,
        dict(x=X, p=4, m=2, epochs=1, batch_size=10, forgetting=1.0, patience=5, method="mod"),
    ),
    "DictionaryLearner": (
        DictionaryLearner,
        dict(p=4, m=2, num_stages=2, lr=0.1, total_steps=4, forgetting=1.0, patience=5, tol=0.1,
             max_iter=3, seed=0, method="unrolled", positive=True),
    ),
    "DictionaryLearner.partial_fit": (
        lambda x: DictionaryLearner(4, m=2).partial_fit(x), dict(x=X)
    ),
    "DictionaryLearner.begin": (lambda x: DictionaryLearner(4, m=2).begin(x), dict(x=X)),
    "TaskDrivenDictionary": (
        TaskDrivenDictionary,
        dict(D=ATOMS, classes=2, lam=0.1, lam2=0.1, nu=0.1, tol=0.1, max_iter=3, positive=True),
    ),
    "TaskDrivenDictionary.fit": (
        lambda **k: TaskDrivenDictionary(ATOMS, 2, 0.1, max_iter=3).fit(**k),
        dict(x=X, y=torch.arange(30) % 2, epochs=1, batch_size=10, lr=0.1, seed=0, begin=None),
    ),
    "TaskDrivenDictionary.fit_head": (
        lambda **k: TaskDrivenDictionary(ATOMS, 2, 0.1, max_iter=3).fit_head(**k),
        dict(x=X, y=torch.arange(30) % 2, max_iter=2),
    ),
    "TaskDrivenDictionary.loss": (
        lambda **k: TaskDrivenDictionary(ATOMS, 2, 0.1, max_iter=3).loss(**k),
        dict(x=X, y=torch.arange(30) % 2),
    ),
    "TaskDrivenDictionary.encode": (
        lambda x: TaskDrivenDictionary(ATOMS, 2, 0.1, max_iter=3).encode(x), dict(x=X)
    ),
    "TaskDrivenDictionary.forward": (
        lambda x: TaskDrivenDictionary(ATOMS, 2, 0.1, max_iter=3)(x), dict(x=X)
    ),
}  # fmt: skip
WRONG = (
    [[1.0]],
    np.ones((2, 2)),
    object(),
    1j,
    torch.ones(3, 3, dtype=torch.int64),
    float("nan"),
)


def test_every_function_is_among_the_calls():
    assert {re.split("[. ]", name)[0] for name in CALLS} == set(ENTRIES)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_of_another_type_is_named(name):
    call, given = CALLS[name]
    if name == "knn_affinity":
        pytest.importorskip("sklearn")
    for argument in given:
        for value in WRONG:
            with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
                call(**given | {argument: value})


COUNTS = {
    "m", "p", "max_iter", "neighbours", "clusters", "classes", "num_stages", "epochs",
    "batch_size", "total_steps", "patience",
}  # fmt: skip


def test_every_count_is_known():
    """What is an integer in the calls is a count, or a seed."""
    given = {key for _, call in CALLS.values() for key, value in call.items() if type(value) is int}
    assert given == COUNTS | {"seed"}


@pytest.mark.parametrize("name", CALLS)
def test_a_count_of_1_is_taken_and_one_of_0_is_named(name):
    call, given = CALLS[name]
    if name == "knn_affinity":
        pytest.importorskip("sklearn")
    for argument in COUNTS & given.keys():
        least = {"p": 1, "m": 1} if argument == "p" else {argument: 1}
        call(**given | least)
        with pytest.raises(ValueError, match=rf"^{argument} must be >= 1\b.*, got 0$"):
            call(**given | {argument: 0})


@pytest.mark.parametrize("name", [name for name, (_, given) in CALLS.items() if "seed" in given])
def test_a_seed_is_any_int64(name):
    call, given = CALLS[name]
    for seed, beyond in ((-(2**63), -1), (2**63 - 1, 1)):
        call(**given | {"seed": seed})
        with pytest.raises(ValueError, match=rf"^seed must be .*, got {seed + beyond}$"):
            call(**given | {"seed": seed + beyond})


def test_a_margin_of_codes_that_are_not_finite_is_refused():
    code = omp(X, ATOMS, 3).code
    code.values[1, 2] = torch.nan
    with pytest.raises(ValueError, match="code must be finite, got 1"):
        support_margin(X, ATOMS, code, m=3)
    with pytest.raises(ValueError, match="code must be finite, got 1"):
        support_margin(X, ATOMS, code.to_dense(), lam=0.1)
