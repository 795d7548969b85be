"""Elastic-net codes against scikit-learn's, their gradient against finite differences."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels.solvers import TaskDrivenDictionary, elastic_net

from .problems import planted

TIGHT = dict(tol=1e-12, max_iter=5_000)


def model(n=8, p=12, classes=3, **options) -> TaskDrivenDictionary:
    g = torch.Generator().manual_seed(1)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    built = TaskDrivenDictionary(D / D.norm(dim=0) * 0.9, classes, lam=0.15, lam2=0.05, **options)
    with torch.no_grad():
        built.head.weight.normal_(generator=g)
        built.head.bias.normal_(generator=g)
    return built


def data(rows=20, n=8, classes=3):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(rows, n, generator=g, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True), torch.randint(0, classes, (rows,), generator=g)


def test_the_minimum_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, D, _ = planted(n=40, p=60, rows=10)
    lam, lam2 = 0.1, 0.03
    found = elastic_net(x, D, lam, lam2, tol=1e-11, max_iter=20_000)
    assert found.converged.all()
    # Theirs is 1/(2 n) ||x - D a||^2 + alpha (ratio ||a||_1 + (1 - ratio)/2 ||a||^2).
    net = linear_model.ElasticNet(
        (lam + lam2) / 40, l1_ratio=lam / (lam + lam2), fit_intercept=False, tol=1e-12,
        max_iter=100_000,
    )  # fmt: skip
    theirs = torch.stack([torch.from_numpy(net.fit(D.numpy(), row.numpy()).coef_) for row in x])
    torch.testing.assert_close(found.code, theirs, atol=1e-6, rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    net, (x, y) = model(**TIGHT, nu=0.1), data()
    supports = net.encode(x).detach() != 0
    assert 1 < supports.sum(1).min() < supports.sum(1).max() < 12  # they differ in size
    net.loss(x, y).backward()
    for parameter in net.parameters():
        flat = parameter.detach().view(-1)
        numeric = torch.empty_like(flat)
        for i in range(len(flat)):
            ends = []
            for h in (1e-6, -1e-6):
                kept = flat[i].item()
                flat[i] += h
                with torch.no_grad():
                    ends.append(net.loss(x, y).item())
                flat[i] = kept
            numeric[i] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(parameter.grad.view(-1), numeric, atol=2e-7, rtol=1e-5)


def test_the_gradient_in_the_signals():
    net, (x, _) = model(**TIGHT), data(rows=3)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    assert torch.autograd.gradcheck(net, x.requires_grad_(), eps=1e-6, atol=1e-6)


def test_codes_that_are_zero_have_no_gradient():
    net, (x, y) = model(**TIGHT), data()
    net.lam = 10.0
    net.loss(x, y).backward()
    assert not net.D.grad.any()
    assert net.head.bias.grad.any()
    assert net(x[:0]).shape == (0, 3)


def test_there_is_no_second_derivative():
    net, (x, y) = model(), data()
    (first,) = torch.autograd.grad(net.loss(x, y), net.D, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_learning_the_dictionary_beats_learning_the_classifier_alone():
    # Twenty directions in five dimensions, their labels without any order.
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(20, 5, generator=g))
    which = torch.randint(0, 20, (400,), generator=g)
    x = directions[which] + 0.05 * torch.randn(400, 5, generator=g)
    x, y = torch.nn.functional.normalize(x), which % 2
    D = torch.randn(5, 12, generator=g)
    runs = []
    for _ in range(2):
        net = TaskDrivenDictionary(2 * D / D.norm(dim=0), 2, lam=0.1, lam2=0.01, max_iter=100)
        torch.testing.assert_close(net.D.norm(dim=0), torch.ones(12))
        fixed = net.fit_head(x, y)
        assert fixed == pytest.approx(net.loss(x, y).item(), rel=1e-4)
        begun: list[int] = []
        losses = net.fit(x, y, epochs=10, batch_size=40, lr=0.3, begin=begun.append)
        assert begun == list(range(10))
        assert losses[-1] < 0.8 * fixed
        assert net.D.norm(dim=0).max() <= 1 + 1e-6
        runs.append(losses)
    assert runs[0] == runs[1]


def test_the_rate_is_held_for_a_tenth_and_falls_as_one_over_t(monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def counted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    net, (x, y) = model(), data()
    net.fit(x, y, epochs=10, batch_size=5, lr=0.4)  # T = 40, held for 4
    want = [0.4] * 4 + [0.4 * 40 / (10 * t) for t in range(5, 41)]
    assert rates == pytest.approx(want)


def test_a_step_of_training_is_projected_gradient_descent():
    net, (x, y) = model(nu=0.3, tol=1e-10), data()
    net.loss(x, y).backward()
    D = net.D.detach() - 0.5 * net.D.grad
    D = D / D.norm(dim=0).clamp_min(1)
    W = net.head.weight.detach() - 0.5 * net.head.weight.grad
    bias = net.head.bias.detach() - 0.5 * net.head.bias.grad
    before = net.loss(x, y).item()
    assert net.fit(x, y, epochs=1, batch_size=20, lr=0.5) == [pytest.approx(before)]
    torch.testing.assert_close(net.D.detach(), D)
    torch.testing.assert_close(net.head.weight.detach(), W)
    torch.testing.assert_close(net.head.bias.detach(), bias)


def test_training_that_diverges_is_an_error():
    net, (x, y) = model(), data()
    with torch.no_grad():
        net.head.bias[0] = torch.nan
    with pytest.raises(RuntimeError, match="training diverged: loss nan in epoch 1"):
        net.fit(x, y, epochs=2, batch_size=20)


def test_it_shows_its_sizes():
    assert "n=8, p=12, lam=0.15, lam2=0.05, nu=1e-05" in repr(model())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda n, x, y: n.fit(x, y + 1), r"y must be in \[0, 2\], got 1 to 3"),
        (lambda n, x, y: n.fit(x, y[:-1]), "y int64"),
        (lambda n, x, y: n.fit_head(x, y - 1), r"y must be in \[0, 2\], got -1 to 1"),
        (lambda n, x, y: n.fit_head(torch.full_like(x, torch.nan), y), "x must be finite"),
        (lambda n, x, y: n.fit(x, y, batch_size=21), "batch_size must be >= 1 and <= N = 20"),
        (lambda n, x, y: n.fit(x, y, batch_size=5, lr=-1), "lr must be a finite number > 0"),
        (lambda n, x, y: TaskDrivenDictionary(n.D, 3, lam=0), "lam must be"),
        (lambda n, x, y: TaskDrivenDictionary(n.D, 3, lam=1, lam2=0), "lam2 must be"),
        (lambda n, x, y: TaskDrivenDictionary(n.D, 3, lam=1, nu=-1), r"nu must be .*got -1"),
        (lambda n, x, y: TaskDrivenDictionary(n.D.half(), 3, lam=1), "float16"),
        (lambda n, x, y: n(x[:, :3]), r"x must be \[\.\.\., n\] with n = 8"),
    ],
)
def test_bad_arguments_are_named(act, words):
    with pytest.raises(ValueError, match=words):
        act(model(), *data())
