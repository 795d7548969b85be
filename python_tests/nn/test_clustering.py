"""TAGnet and joint clustering: what they unroll, their gradients, what they learn."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels.nn import LISTA, ClusterHead, JointSparseClustering, TAGNet
from deepl0_kernels.solvers import graph_laplacian, graph_sparse_code, knn_affinity

TIGHT = dict(tol=1e-11, max_iter=5_000)


def problem(rows=15, n=8, p=12):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    return x, 0.9 * D / D.norm(dim=0), graph_laplacian(knn_affinity(x, 3))


def joint(p=12, clusters=3, rows=15, n=8, **options):
    x, D, L = problem(rows, n, p)
    torch.manual_seed(1)
    head = ClusterHead(p, clusters).double()
    return JointSparseClustering(D, head, 0.15, 0.4, 0.05, **{**TIGHT, **options}), x, L


def test_many_stages_are_the_solver():
    x, D, L = problem()
    encoder = TAGNet.from_graph(D, L, 0.3, 0.5, num_stages=3000)
    torch.testing.assert_close(
        encoder(x, L), graph_sparse_code(x, D, L, 0.3, 0.5, **TIGHT).dense, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("tied", [True, False])
def test_without_a_graph_it_is_lista(tied):
    x, D, L = problem()
    encoder = TAGNet.from_graph(D, L, 0.3, 0.0, 3, tied)
    theirs = LISTA.from_dictionary(D, 0.3, 3, tied)
    assert torch.equal(encoder(x, L), theirs(x))
    assert "gamma=0" in repr(encoder)


def test_every_stage_has_its_own_weights_where_they_are_not_tied():
    x, D, L = problem()
    encoder = TAGNet.from_graph(D, L, 0.1, 0.5, 3, tied=False)
    with torch.no_grad():
        encoder.S[1] *= 0.5
        encoder.log_theta[1] -= 0.3
        encoder.log_theta[2] += 0.7
    theta, c = encoder.theta, x @ encoder.W.T

    def soft(u, t):
        return u.sign() * (u.abs() - t).clamp_min(0)

    z = soft(c, theta[0])
    for S, t in zip(encoder.S, theta[1:], strict=True):
        z = soft(c + z @ S.T - encoder.gamma * (L.to_dense() @ z), t)
    assert 0.05 < (z != 0).double().mean() < 0.95
    torch.testing.assert_close(encoder(x, L), z)


def test_its_gradient_is_that_of_finite_differences():
    x, D, L = problem(rows=6)
    encoder = TAGNet.from_graph(D, L, 0.3, 0.5, 3)
    weights = [encoder.W, encoder.S, encoder.log_theta]

    def codes(W, S, log_theta):
        moved = {"W": W, "S": S, "log_theta": log_theta}
        return torch.func.functional_call(encoder, moved, (x, L))

    assert torch.autograd.gradcheck(codes, weights, fast_mode=True)


@pytest.mark.parametrize("loss", ["entropy", "margin"])
def test_the_gradient_goes_through_the_minimiser(loss):
    balance = 0.3 if loss == "entropy" else 0.0
    model, x, L = joint(6, 3, 5, 4, loss=loss, balance=balance, nu=0.1)
    active = model.encode(x, L).detach() != 0
    assert 0 < active.sum(1).min() < active.sum(1).max()
    model.loss(model.encode(x, L)).backward()
    for parameter in model.parameters():
        flat = parameter.detach().view(-1)
        numeric = torch.empty_like(flat)
        for i in range(len(flat)):
            ends, kept = [], flat[i].item()
            for h in (1e-6, -1e-6):
                flat[i] = kept + h
                with torch.no_grad():
                    ends.append(model.loss(model.encode(x, L)).item())
            flat[i] = kept
            numeric[i] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(parameter.grad.view(-1), numeric, atol=1e-6, rtol=1e-5)


def test_projection_shortens_and_never_lengthens():
    _, D, _ = problem()
    D = D * torch.linspace(0.2, 3, D.shape[1], dtype=D.dtype)
    model = JointSparseClustering(D, ClusterHead(12, 3).double(), 0.1, 0.1)
    short = D.norm(dim=0) <= 1
    assert 0 < short.sum() < len(short)
    assert torch.equal(model.D.data[:, short], D[:, short])
    torch.testing.assert_close(model.D.data[:, ~short], (D / D.norm(dim=0))[:, ~short])


@pytest.mark.parametrize("loss", ["entropy", "margin"])
def test_fitting_lowers_the_loss(loss):
    model, x, L = joint(loss=loss, tol=1e-6)
    before = model.D.detach().clone()
    losses = model.fit(x, L, iterations=15, lr=1e-2)
    assert len(losses) == 15
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(model.D, before)
    assert model.D.norm(dim=0).max() <= 1 + 1e-12
    torch.testing.assert_close(model(x, L).sum(1), torch.ones(15, dtype=torch.float64))


def test_the_margin_is_that_of_the_two_best_clusters():
    model, *_ = joint(loss="margin", nu=0.3)
    a = torch.randn(4, 12, dtype=torch.float64)
    best = model.head.logits(a).sort(1).values
    expected = (1 - best[:, -1] + best[:, -2]).clamp_min(0).mean()
    expected = expected + 0.15 * model.head.weight.square().sum()
    torch.testing.assert_close(model.loss(a), expected)


def test_bad_arguments_are_named():
    x, D, L = problem()
    head = ClusterHead(12, 3).double()
    for change, words in (
        (dict(lam=-1.0), "lam must be a finite number > 0, got -1.0"),
        (dict(alpha=-1.0), "alpha must be a finite number >= 0, got -1.0"),
        (dict(nu=float("nan")), "nu must be a finite number >= 0, got nan"),
        (dict(loss="hinge"), r"loss must be one of \('entropy', 'margin'\), got 'hinge'"),
        (dict(head=ClusterHead(5, 3).double()), "D's size 12, got code_size 5"),
        (dict(head=ClusterHead(12, 3)), "must have the dtype of D"),
        (dict(head=ClusterHead(12, 1).double(), loss="margin"), "2 clusters or more"),
        (dict(D=D.half()), "D must be float32 or float64"),
        (dict(loss="margin", balance=0.5), "balance belongs to loss 'entropy', .* got 0.5"),
    ):
        with pytest.raises(ValueError, match=words):
            JointSparseClustering(**{"D": D, "head": head, "lam": 0.1, "alpha": 0.1, **change})
    with pytest.raises(TypeError, match="head must be a ClusterHead, got Linear"):
        JointSparseClustering(D, torch.nn.Linear(12, 3).double(), 0.1, 0.1)
    for graph, error, words in (
        (None, TypeError, "laplacian must be a sparse COO tensor, got NoneType"),
        (L.float(), ValueError, r"laplacian must have the dtype of D \(torch.float64\)"),
    ):
        with pytest.raises(error, match=words):
            TAGNet.from_graph(D, graph, 0.3, 0.5)
    model = JointSparseClustering(D, head, 0.1, 0.1)
    with pytest.raises(ValueError, match="iterations must be >= 1, got 0"):
        model.fit(x, L, iterations=0)
    assert len(model.fit(x, L, iterations=1)) == 1
    with pytest.raises(ValueError, match="N = 3"):
        model.fit(x[:3], L)
    with pytest.raises(ValueError, match="gamma must be a finite number >= 0, got -1"):
        TAGNet(8, 12, gamma=-1)
    encoder = TAGNet.from_graph(D, L, 0.3, 0.5)
    with pytest.raises(ValueError, match=r"x must be \[N, n\]"):
        encoder(x[None], L)
    with pytest.raises(ValueError, match="N = 4"):
        encoder(x[:4], L)


def test_a_loss_that_is_not_finite_is_an_error():
    model, x, L = joint()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="training diverged: loss nan in step 0"):
        model.fit(x, L, iterations=2)
