"""Graphs and graph-regularised codes: scikit-learn, optimality conditions, bad input."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import (
    eigengap,
    elastic_net,
    fista,
    graph_laplacian,
    graph_sparse_code,
)
from deepl0_kernels.solvers import knn_affinity as affinity_of


def problem(rows=12, n=8, p=14):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    return x, D / D.norm(dim=0), graph_laplacian(affinity_of(x, 3))


def test_the_affinity_is_that_of_the_formula():
    neighbors = pytest.importorskip("sklearn.neighbors")
    x = problem(rows=30)[0]
    V = affinity_of(x, 4, width=1.3).to_dense()
    graph = torch.from_numpy(neighbors.kneighbors_graph(x.numpy(), 4).toarray()) > 0
    # Nobody is their own neighbour.
    near = (graph & ~torch.eye(30, dtype=torch.bool)).double()
    search = torch.cdist(x, x).fill_diagonal_(torch.inf)
    kept = torch.zeros_like(near).scatter(1, search.topk(4, largest=False).indices, 1.0)
    assert torch.equal(kept, near)
    kept = torch.maximum(kept, kept.T)
    expected = torch.exp(-torch.cdist(x, x).square() / (2 * 1.3**2)) * kept
    torch.testing.assert_close(V, expected)
    # By default the median neighbour weighs exp(-1/2).
    found = affinity_of(x, 1).values()
    assert found.min() < torch.tensor(-0.5).exp() < found.max()


def test_the_laplacian_is_scipys():
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    V = affinity_of(problem(rows=30)[0], 3)
    for normalized in (True, False):
        L = graph_laplacian(V, normalized)
        theirs = torch.from_numpy(csgraph.laplacian(V.to_dense().numpy(), normed=normalized))
        torch.testing.assert_close(L.to_dense(), theirs)
        values = torch.linalg.eigvalsh(L.to_dense())
        assert values[0] > -1e-12
        assert not normalized or values[-1] < 2 + 1e-12


def blobs(parts, apart, dtype=torch.float64):
    """Points around so many corners of a cube, ``apart`` spreads from one another."""
    g = torch.Generator().manual_seed(5)
    corners = apart * torch.eye(parts, dtype=torch.float64).repeat_interleave(20, 0)
    noise = torch.randn(20 * parts, parts, generator=g, dtype=torch.float64)
    return graph_laplacian(affinity_of((corners + noise).to(dtype), 6))


def test_the_eigengap_is_that_of_the_spectrum():
    L = blobs(4, 3.0)
    values = torch.linalg.eigvalsh(L.to_dense())
    for c in (1, 4, 7):
        expected = 1 - max(values[c - 1].item(), 0) / values[c].item()
        assert eigengap(L, c) == pytest.approx(expected, abs=1e-9)
    # A path of three: eigenvalues 0, 1, 3 without normalisation.
    path = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).to_sparse()
    assert eigengap(graph_laplacian(path, normalized=False), 2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_eigengap_finds_the_number_of_parts(dtype):
    near = blobs(5, 4.0, dtype)
    found = [eigengap(near, c) for c in range(2, 10)]
    assert found.index(max(found)) == 5 - 2
    assert 0 < max(found) < 1
    # Five components: a gap of exactly 1, though eigenvalues of zero are rounded; and of 0 below.
    far = blobs(5, 40.0, dtype)
    assert eigengap(far, 5) == 1
    assert [eigengap(far, c) for c in (1, 4)] == [0, 0]
    assert 0 < eigengap(far, 6) < 0.9


def test_the_eigengap_refuses_what_has_none():
    L = blobs(2, 4.0)
    with pytest.raises(ValueError, match="clusters must be >= 1 and <= N - 1 = 39, got 40"):
        eigengap(L, 40)
    with pytest.raises(ValueError, match="positive semidefinite, has an eigenvalue -"):
        eigengap(torch.tensor([[0.0, 1], [1, 0]]).to_sparse(), 1)
    with pytest.raises(ValueError, match="laplacian must be symmetric"):
        eigengap(torch.tensor([[0.0, 1], [2, 0]]).to_sparse(), 1)
    with pytest.raises(TypeError, match="laplacian must be a sparse COO tensor"):
        eigengap(torch.eye(3), 1)
    with pytest.raises(ValueError, match=r"laplacian must be float32, .* got torch.int64"):
        eigengap(torch.tensor([[1, -1], [-1, 1]]).to_sparse(), 1)
    # No edge at all: two components, of which one cluster can be no clear part.
    assert eigengap(torch.zeros(2, 2).to_sparse(), 1) == 0


def test_who_has_no_neighbours_is_left_alone():
    V = torch.tensor([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]).to_sparse()
    expected = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(graph_laplacian(V).to_dense(), expected)


def test_without_a_graph_these_are_other_solvers_codes():
    x, D, L = problem()
    tight = dict(tol=1e-12, max_iter=20_000)
    found = graph_sparse_code(x, D, L, 0.2, 0.0, **tight)
    torch.testing.assert_close(found.code, fista(x, D, 0.2, **tight).code, atol=1e-8, rtol=0)
    found = graph_sparse_code(x, D, L, 0.2, 0.0, 0.1, **tight)
    theirs = elastic_net(x, D, 0.2, 0.1, **tight).code
    torch.testing.assert_close(found.code, theirs, atol=1e-8, rtol=0)


@pytest.mark.parametrize("p", [6, 40])  # both forms of the gradient
@pytest.mark.parametrize("lam2", [0.0, 0.05])
def test_the_optimum_meets_its_conditions(p, lam2):
    x, D, L = problem(p=p)
    lam, alpha = 0.2, 0.7
    found = graph_sparse_code(x, D, L, lam, alpha, lam2, tol=1e-12, max_iter=50_000)
    assert found.converged.all()
    a = found.dense
    slope = (a @ D.T - x) @ D + lam2 * a + alpha * L.to_dense() @ a
    on = a != 0
    assert 0.1 < on.double().mean() < 0.9
    torch.testing.assert_close(slope[on], -lam * a[on].sign(), atol=1e-8, rtol=0)
    assert slope[~on].abs().max() < lam + 1e-8
    # The objective that is returned is that of the sum.
    value = (x - a @ D.T).square().sum() / 2 + lam * a.abs().sum() + lam2 / 2 * a.square().sum()
    value += alpha / 2 * torch.trace(a.T @ L.to_dense() @ a)
    torch.testing.assert_close(found.objective[1].sum(), value)
    torch.testing.assert_close(found.objective[0].sum(), x.square().sum() / 2)


@pytest.mark.parametrize(("alpha", "lam2"), [(0.0, 50.0), (20.0, 0.0), (3.0, 30.0)])
def test_the_step_counts_every_term(alpha, lam2):
    # A step without one of the terms is too long by a large factor, and the codes leave for inf.
    x, D, L = problem()
    found = graph_sparse_code(x, D, L, 0.01, alpha, lam2, tol=1e-10, max_iter=3000)
    assert found.converged.all()
    a = found.dense
    slope = (a @ D.T - x) @ D + lam2 * a + alpha * L.to_dense() @ a
    assert (slope[a != 0] + 0.01 * a[a != 0].sign()).abs().max() < 1e-6
    # And no shorter than the terms ask: the first step from 0 is that of the bound.
    bound = dk.solvers.squared_norm(D) + lam2 + alpha * L.to_dense().abs().sum(1).max()
    first = graph_sparse_code(x, D, L, 0.01, alpha, lam2, max_iter=1).dense
    u = x @ D / bound
    torch.testing.assert_close(first, u - u.clamp(-0.01 / bound, 0.01 / bound))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_beyond_rounding_are_not_zero(dtype):
    eps = torch.finfo(dtype).eps

    def gap(smallest):
        # Any positive semidefinite matrix serves: these are its eigenvalues.
        diagonal = torch.tensor([0.0, smallest, 0.5, 2.0], dtype=dtype)
        return eigengap(torch.diag(diagonal).to_sparse(), 1)

    assert gap(20 * 2 * eps) == 1  # 1 - 0 / lambda_2, which counts
    assert gap(2 * 2 * eps) == 0  # two eigenvalues that are 0
    assert gap(7.9 * 2 * eps) == 0
    assert gap(8.1 * 2 * eps) == 1


def test_a_form_that_is_not_semidefinite_is_refused():
    def diagonal(*values):
        return torch.diag(torch.tensor(values, dtype=torch.float64)).to_sparse()

    with pytest.raises(ValueError, match=r"positive semidefinite, has an eigenvalue -0\.01"):
        eigengap(diagonal(-0.01, 1.0, 2.0), 1)
    assert eigengap(diagonal(-0.001, 1.0, 2.0), 1) == 1


def test_the_graph_draws_neighbours_together_and_a_start_saves_steps():
    x, D, L = problem(rows=40)

    def roughness(alpha):
        a = graph_sparse_code(x, D, L, 0.1, alpha).dense
        return (torch.trace(a.T @ (L @ a)) / a.square().sum()).item()

    assert roughness(3.0) < 0.6 * roughness(0.0)
    cold = graph_sparse_code(x, D, L, 0.1, 1.0)
    warm = graph_sparse_code(x, D, L, 0.1, 1.0, init=cold.dense)
    assert warm.iterations[0] < cold.iterations[0] / 2
    short = graph_sparse_code(x, D, L, 0.1, 1.0, max_iter=2)
    assert short.iterations.tolist() == [2] * 40
    assert not short.converged.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(lam=0.0), "lam must be a finite number > 0, got 0.0"),
        (dict(alpha=-1.0), "alpha must be a finite number >= 0, got -1.0"),
        (dict(lam2=float("inf")), "lam2 must be a finite number >= 0, got inf"),
        (dict(max_iter=0), "max_iter must be >= 1, got 0"),
        (dict(x=torch.zeros(3, 8, dtype=torch.float64)), "N = 3, got"),
        (dict(x=torch.zeros(2, 6, 8, dtype=torch.float64)), r"x must be \[N, n\]"),
        (dict(init=torch.zeros(12, 3, dtype=torch.float64)), r"init must have shape \[N, p\]"),
        (dict(init=torch.full((12, 14), torch.nan, dtype=torch.float64)), "init must be finite"),
        (dict(laplacian=torch.eye(12).to_sparse()), "laplacian must have the dtype of x"),
    ],
)
def test_bad_arguments_are_named(change, words):
    x, D, L = problem()
    arguments = dict(x=x, D=D, laplacian=L, lam=0.1, alpha=1.0) | change
    with pytest.raises(ValueError, match=words):
        graph_sparse_code(**arguments)


def test_bad_graphs_are_named():
    x = problem()[0]
    with pytest.raises(ValueError, match=r"neighbours must be >= 1 and <= N - 1 = 11, got 12"):
        affinity_of(x, 12)
    with pytest.raises(ValueError, match=r"width must be a finite number > 0, got 0"):
        affinity_of(x, 2, 0.0)
    with pytest.raises(ValueError, match="x must be finite"):
        affinity_of(x / 0, 2)
    with pytest.raises(ValueError, match="give width"):
        affinity_of(torch.zeros(5, 3), 2)
    with pytest.raises(ValueError, match=r"\[N, n\], got torch.float32 \(5, 1, 1\)"):
        affinity_of(torch.zeros(5, 1, 1), 2)
    with pytest.raises(ValueError, match=r"\[N, n\], got torch.float32 \(5,\)"):
        affinity_of(torch.zeros(5), 2)
    with pytest.raises(TypeError, match="affinity must be a sparse COO tensor"):
        graph_laplacian(torch.eye(3))
    with pytest.raises(ValueError, match=r"affinity must be \[N, N\]"):
        graph_laplacian(torch.ones(2, 3).to_sparse())
    with pytest.raises(ValueError, match="affinity must be finite"):
        graph_laplacian(torch.full((3, 3), torch.inf).to_sparse())
    with pytest.raises(ValueError, match="affinity must be symmetric"):
        graph_laplacian(torch.ones(3, 3).triu().to_sparse())
    with pytest.raises(ValueError, match="affinity must be >= 0, got -1"):
        graph_laplacian(-torch.ones(3, 3).to_sparse())
