"""The refitting encoder: its equation, the solver it unrolls, gradients, calibration."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.nn import DeepHTPEncoder, DeepL0Encoder, DeepMSparseEncoder, SigmaSchedule
from deepl0_kernels.solvers import analytic_weights, htp
from deepl0_kernels.training import calibrate

N, P, M, K = 20, 30, 6, 3


def dictionary(dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    D = torch.randn(N, P, generator=g, dtype=torch.float64)
    return torch.nn.functional.normalize(D, dim=0).to(dtype)


def planted(rows=40, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    a = torch.randn(rows, P, generator=g, dtype=dtype)
    a = a * (torch.rand(rows, P, generator=g) < 0.1)
    return a @ dictionary(dtype).T, a


def encoder(dtype=torch.float64, theta=0.5, **options):
    steps = (1.0, 0.9, 0.8)
    return DeepHTPEncoder.from_dictionary(dictionary(dtype), M, K, theta, steps=steps, **options)


def by_the_equation(e, x, entries=(M, M, M)):
    before = z = torch.zeros(len(x), P, dtype=x.dtype)
    momenta = [0.0] * len(entries) if e.momentum is None else e.momentum
    for theta, step, momentum, m in zip(e.theta, e.step, momenta, entries, strict=True):
        u = z + step * (x - z @ e.atoms) @ e.W.T + momentum * (z - before)
        if e.eval_sigma:
            height = ((u.abs() / theta - 1 + e.eval_sigma) / e.eval_sigma).clamp(0, 1)
        else:
            height = (u.abs() >= theta).to(u.dtype)
        on = dk.keep_top_m(u * (height > 0), m) != 0
        before = z
        z = torch.zeros_like(z)
        for row, at, signal in zip(z, on, x, strict=True):
            if at.any():
                row[at] = torch.linalg.lstsq(e.D[:, at], signal[:, None]).solution[:, 0]
        z = height * z
    return z


@torch.no_grad()
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_itself_alone(spoilt):
    e, (x, _) = encoder(torch.float32).eval(), planted(dtype=torch.float32)
    want = e(x)
    x[7, 2] = spoilt
    z = e(x)
    assert z[7].isnan().any()
    others = torch.arange(len(x)) != 7
    assert torch.equal(z[others], want[others])


@torch.no_grad()
def test_a_threshold_that_is_nan_is_refused():
    e, (x, _) = encoder().eval(), planted()
    e.log_theta[1, 3] = float("nan")
    with pytest.raises(RuntimeError, match="theta must be >= 0, got nan"):
        e(x)


@torch.no_grad()
def test_a_stage_is_the_equation():
    e, (x, _) = encoder(theta=0.3).eval(), planted(200)
    want = by_the_equation(e, x)
    torch.testing.assert_close(e(x), want)
    sizes = (want != 0).sum(1)
    assert sizes.min() < M == sizes.max()
    codes = e.stages(x)
    assert len(codes) == K
    assert torch.equal(codes[-1], e(x))
    # Where supports stay, nothing is solved; all at once, with gradients, it is the same.
    with torch.enable_grad():
        torch.testing.assert_close(e(x), want)


@torch.no_grad()
@pytest.mark.parametrize("entries", [M, (2, 4, M), (M, 2, 4), (4, 4, 4)])
@pytest.mark.parametrize("eval_sigma", [0.0, 0.4, 1.0])
def test_a_stage_has_its_own_m_and_a_ramp_where_it_is_asked_for(entries, eval_sigma):
    x, _ = planted(200)
    e = DeepHTPEncoder.from_dictionary(
        dictionary(), entries, K, 0.3, steps=(1.0, 0.9, 0.8), eval_sigma=eval_sigma
    ).eval()
    e.log_theta.add_(torch.linspace(-0.1, 0.1, P))
    each = (entries,) * K if isinstance(entries, int) else entries
    want = by_the_equation(e, x, each)
    torch.testing.assert_close(e(x), want)
    for z, m in zip(e.stages(x), each, strict=True):
        sizes = (z != 0).sum(1)
        assert sizes.min() < m == sizes.max()
    with torch.enable_grad():
        torch.testing.assert_close(e(x), want)
        alone = torch.cat([e(row[None]) for row in x[:50]])  # where few are above the threshold
        torch.testing.assert_close(alone, want[:50])
    e.train()
    e.sigma = eval_sigma
    torch.testing.assert_close(e(x), want)
    assert ("eval_sigma" in repr(e)) == (eval_sigma > 0)


@torch.no_grad()
@pytest.mark.parametrize("eval_sigma", [0.0, 0.4])
@pytest.mark.parametrize("entries", [(M,) * 4, (2, 3, 5, M)])
def test_momentum_is_the_equation_on_both_paths(entries, eval_sigma):
    x, _ = planted(200)
    D, steps, momenta = dictionary(), (1.0, 0.9, 1.2, 0.8), (0.9, 0.3, 0.0, 0.5)
    e, still = (
        DeepHTPEncoder.from_dictionary(
            D, entries, 4, 0.3, steps=steps, momentum=given, eval_sigma=eval_sigma
        ).eval()
        for given in (momenta, None)
    )
    assert e.momentum.tolist() == pytest.approx(momenta)
    want = by_the_equation(e, x, entries)
    torch.testing.assert_close(e(x), want)
    with torch.enable_grad():
        torch.testing.assert_close(e(x), want)
    assert not torch.allclose(want, by_the_equation(still, x, entries))
    e.momentum.fill_(0.0)
    assert torch.equal(e(x), still(x))
    assert "momentum=(0.9, 0.3, 0.0, 0.5)" in repr(e)
    assert "momentum" not in repr(still)
    assert "momentum" not in still.state_dict()


@torch.no_grad()
def test_momentum_recovers_more():
    """Of signals that are hard for so few measurements, where both are calibrated alike."""
    n, p, m, K, failed = 60, 400, 16, 12, [0, 0]
    for seed in (0, 1):
        g = torch.Generator().manual_seed(seed)
        D = torch.nn.functional.normalize(torch.randn(n, p, generator=g), dim=0)
        a = torch.randn(4000, p, generator=g) * (torch.rand(4000, p, generator=g) < 9 / p)
        x = a @ D.T
        for i, momentum in enumerate((None, 0.0)):
            e = DeepHTPEncoder.from_dictionary(D, m, K, steps=1.0, momentum=momentum)
            calibrate(e, x[:1000], a[:1000], factors=(1.0, 1.2))
            left = (e(x[1000:]) - a[1000:]).square().sum(1) / a[1000:].square().sum(1)
            failed[i] += (left > 0.01).sum().item()
        assert e.momentum[0] == 0 < e.momentum.max()
    assert failed[1] < 0.9 * failed[0], failed


def test_a_module_pickled_before_there_was_momentum():
    e, (x, _) = encoder().eval(), planted(5)
    state = pickle.loads(pickle.dumps(e.__dict__))
    del state["_first_momentum"], state["_parameters"]["momentum"]
    old = DeepHTPEncoder.__new__(DeepHTPEncoder)
    old.__setstate__(state)
    assert torch.equal(old(x), e(x))
    old.reset_parameters()
    assert repr(old) == repr(e)


@pytest.mark.parametrize("bad", [1.0, -0.1, float("nan"), (0.1, 0.2), "0.1"])
def test_a_momentum_out_of_range_is_named(bad):
    with pytest.raises((TypeError, ValueError), match="momentum must"):
        DeepHTPEncoder(N, P, M, K, momentum=bad)


@torch.no_grad()
def test_supports_that_grow_recover_more():
    """Of signals that are hard for so few measurements."""
    g = torch.Generator().manual_seed(0)
    n, p, m, K = 60, 400, 16, 16
    D = torch.nn.functional.normalize(torch.randn(n, p, generator=g), dim=0)
    a = torch.randn(1000, p, generator=g) * (torch.rand(1000, p, generator=g) < 10 / p)
    failed = []
    for entries in (m, [min(m, 2 * k) for k in range(1, K + 1)]):
        e = DeepHTPEncoder.from_dictionary(D, entries, K, 1e-3, steps=1.0).eval()
        failed.append(((e(a @ D.T) - a).square().sum(1) > 0.01 * a.square().sum(1)).sum().item())
    assert failed[1] < 0.5 * failed[0], failed


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_thresholds_it_is_the_solver(dtype):
    D, (x, _) = dictionary(dtype), planted(dtype=dtype)
    e = DeepHTPEncoder.from_dictionary(D, M, 2, W=0.2 * D.T).eval()
    want = htp(x, D, M, step=0.2, max_iter=2, tol=1e-9)
    # The solver does not take what raises its objective.
    same = (e(x) - want.dense).abs().amax(1) < 1e-4
    assert same.double().mean() > 0.8
    assert (e(x) != 0).sum(1).max() == M


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_gradients_by_differences(momentum):
    e, (x, _) = encoder(momentum=momentum), planted(2)
    x.requires_grad_()
    names = [name for name, _ in e.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(e, dict(zip(names, values, strict=True)), (x,))

    e.sigma = 0.5
    values = [p.detach().requires_grad_() for p in e.parameters()]
    assert torch.autograd.gradcheck(call, (x, *values), eps=1e-6, atol=1e-6)
    grads = torch.autograd.grad(call(x, *values).square().sum(), values)
    assert all(g.abs().sum() > 0 for g in grads), names


def test_least_squares_are_differentiated_where_atoms_coincide():
    D, (x, _) = dictionary(), planted(5)
    D[:, 1] = D[:, 0]
    e = DeepHTPEncoder.from_dictionary(D, M, 2, 0.3).double()
    e(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in e.parameters() if p.grad is not None)
    assert e.atoms.grad.abs().sum() > 0


@torch.no_grad()
def test_edges():
    e, (x, _) = encoder(torch.float32).eval(), planted(dtype=torch.float32)
    assert e(x[:0]).shape == (0, P)
    assert torch.equal(e(x.reshape(4, 10, N)).reshape(40, P), e(x))
    assert torch.equal(e(0 * x), torch.zeros(40, P))
    bad = x.clone()
    bad[3, 2] = torch.nan
    assert e(bad)[3].isnan().any()
    torch.testing.assert_close(e(bad)[4:], e(x)[4:])
    other = DeepHTPEncoder(N, P, M, K, steps=1.0)
    other.load_state_dict(e.state_dict())
    assert torch.equal(other.eval()(x), e(x))
    # What is kept of D is that of this D.
    e.atoms.mul_(2)
    torch.testing.assert_close(e(x), copy.deepcopy(e)(x))
    assert "m=6" in repr(e)
    assert DeepHTPEncoder(N, P, M, 1).eval()(x).shape == (40, P)
    SigmaSchedule(e, initial=0.3)
    assert e.sigma == 0.3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DeepHTPEncoder(N, P, N + 1), r"m must be >= 1 and <= min\(n, p\) = 20, got 21"),
        (lambda: DeepHTPEncoder(N, P, 0), "m must be >= 1"),
        (
            lambda: DeepHTPEncoder(N, P, (3, N + 1)),
            r"m must be >= 1 and <= min\(n, p\) = 20, got 21",
        ),
        (lambda: DeepHTPEncoder(N, P, (3, 4, 5)), "m must have num_stages = 2 entries, got 3"),
        (
            lambda: DeepHTPEncoder(N, P, M, eval_sigma=1.5),
            r"eval_sigma must be in \[0, 1\], got 1.5",
        ),
        (lambda: DeepHTPEncoder(N, P, M, 2, steps=(1.0,)), "steps must have num_stages = 2"),
        (lambda: DeepHTPEncoder.from_dictionary(dictionary(), M, theta=0.0), "theta must be"),
        (lambda: DeepHTPEncoder.from_dictionary(dictionary(), M, W=dictionary()), "W must have"),
        (lambda: DeepHTPEncoder(N, P, M)(torch.ones(3, N + 1)), r"x must have shape"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_analytic_weights():
    D = dictionary()
    W = analytic_weights(D)
    torch.testing.assert_close((W * D.T).sum(1), torch.ones(P, dtype=D.dtype))
    # Stationary: the gradient of ||W D||^2 is along the constraint, row by row.
    gradient = W @ D @ D.T
    along = (gradient * D.T).sum(1, keepdim=True) * D.T
    torch.testing.assert_close(gradient, along)
    assert (W @ D).norm() < (D.T @ D).norm()
    torch.testing.assert_close(analytic_weights(4 * D), W / 4)
    tall = D[:, :5]
    torch.testing.assert_close(analytic_weights(tall) @ tall, torch.eye(5, dtype=D.dtype))
    D[:, 3] = 0
    with pytest.raises(ValueError, match="no atom that is 0, got 1"):
        analytic_weights(D)


def factored(cls, *arguments, **options):
    D = dictionary(torch.float32)
    e = cls(N, P, *arguments, num_stages=4, factored=True, steps=1.0, **options)
    with torch.no_grad():
        if e.bias is not None:
            e.bias.copy_(torch.linspace(-0.1, 0.1, P))
        e.W.copy_(analytic_weights(D))
        e.atoms.copy_(D.T)
    return e


@pytest.mark.parametrize(
    "make",
    [
        lambda: DeepHTPEncoder.from_dictionary(dictionary(torch.float32), 10, 4, 2.0, steps=1.0),
        lambda: DeepHTPEncoder.from_dictionary(
            dictionary(torch.float32), (3, 5, 7, 9), 4, 2.0, steps=1.0, eval_sigma=0.3
        ),
        lambda: factored(DeepL0Encoder, tied=False),
        lambda: factored(DeepL0Encoder, tied=False, bias=True),
        lambda: factored(DeepMSparseEncoder, (3,) * 4),
        lambda: factored(DeepMSparseEncoder, (3,) * 4, bias=True),
    ],
)
def test_calibration_lowers_the_error_and_reports_it(make):
    x, a = planted(300, torch.float32)
    e = make().eval()
    with torch.no_grad():
        before = (e(x) - a).square().sum() / a.square().sum()
    errors = calibrate(e, x, a)
    with torch.no_grad():
        found = ((e(x) - a).square().sum() / a.square().sum()).item()
    assert errors[-1] == pytest.approx(found, rel=1e-2, abs=1e-4)
    assert errors[-1] < 0.8 * before
    assert errors[-1] < errors[0]


def test_what_cannot_be_calibrated_is_named():
    x, a = planted(10, torch.float32)
    for e in (DeepL0Encoder(N, P), factored(DeepL0Encoder), DeepMSparseEncoder(N, P, M)):
        with pytest.raises(ValueError, match="encoder must be factored"):
            calibrate(e, x, a)
    with pytest.raises(TypeError, match="encoder must be a deep l0 encoder, got LISTA"):
        calibrate(dk.nn.LISTA(N, P), x, a)
    good = factored(DeepL0Encoder, tied=False)
    with pytest.raises(ValueError, match="not all 0"):
        calibrate(good, x, 0 * a)
    with pytest.raises(ValueError, match="codes must have shape"):
        calibrate(good, x, a[:, 1:])
    with pytest.raises(ValueError, match="factors must be"):
        calibrate(good, x, a, factors=(0.0,))
    with pytest.raises(ValueError, match="factors must not be empty"):
        calibrate(good, x, a, factors=())
    with pytest.raises(ValueError, match="momenta must be in"):
        calibrate(encoder(torch.float32, momentum=0.0), x, a, momenta=(1.0,))
