"""Polishing: least squares near a prediction, a decision, least squares again."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import iht, iht_m, polish
from deepl0_kernels.solvers.step import safe_step

from .problems import planted

PROBLEMS = [dict(m=12), dict(lam=0.05)]


def oracle(x, D, code, ridge, m=None, lam=None):
    """Row by row, by the normal equations in float64."""
    x, D, code = x.double(), D.double(), code.double()
    weight = ridge * D.square().sum(0)

    def near(row, prior):
        on = prior.nonzero()[:, 0]
        A = D[:, on].T @ D[:, on] + torch.diag(weight[on])
        found = torch.zeros_like(prior)
        found[on] = torch.linalg.solve(A, D[:, on].T @ row + weight[on] * prior[on])
        return found

    rows = []
    for row, prior in zip(x, code, strict=True):
        v = near(row, prior)
        if m is not None:
            v = dk.keep_top_m(v, m)
        else:
            v = torch.where(v.abs() >= (2 * lam * safe_step(D)) ** 0.5, v, 0)
        rows.append(near(row, v))
    return torch.stack(rows)


def guesses(rows=60):
    """Signals, a dictionary whose atoms have different norms, and dense predictions with 20 to 30
    entries, of which some are wrong."""
    x, D, _ = planted(rows=rows)
    D = D * torch.linspace(0.5, 1.5, D.shape[1], dtype=D.dtype)
    best = iht_m(x, D, 12).dense
    g = torch.Generator().manual_seed(1)
    noise, on = (f(best.shape, generator=g, dtype=best.dtype) for f in (torch.randn, torch.rand))
    noisy = best + 0.2 * noise * (on < 0.3)
    return x, D, noisy


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("ridge", [1e-3, 0.5, 10.0])
def test_it_is_the_least_squares_of_its_definition(problem, ridge):
    x, D, code = guesses()
    found = polish(x, D, code, ridge=ridge, **problem)
    want = oracle(x, D, code, ridge, **problem)
    assert torch.equal(found != 0, want != 0)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
    single = polish(x.float(), D.float(), code.float(), ridge=ridge, **problem)
    assert single.dtype == torch.float32
    same = ((single != 0) == (want != 0)).all(1)  # a decision may differ by rounding
    assert same.float().mean() > 0.95
    torch.testing.assert_close(single[same], want[same].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("problem", [dict(m=4), dict(lam=0.05)])
def test_a_right_support_becomes_the_optimal_code(problem):
    x, D, code = planted()
    options = dict(init=code, tol=1e-12, max_iter=20_000)
    if "m" in problem:
        best = iht_m(x, D, problem["m"], **options).dense
    else:
        best = iht(x, D, problem["lam"], **options).dense
    # Shrunk as l1 leaves it, and with entries that are none.
    extra = 0.01 * torch.randn_like(best) * ((best == 0) & (torch.rand_like(best) < 0.1))
    guess = 0.9 * best + extra
    found = polish(x, D, guess, ridge=1e-6, **problem)
    right = ((found != 0) == (best != 0)).all(1)
    assert right.float().mean() > 0.9
    torch.testing.assert_close(found[right], best[right], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_shapes_scales_and_what_is_empty(problem):
    x, D, code = guesses(rows=12)
    found = polish(x, D, code, **problem)
    stacked = polish(x.reshape(3, 4, -1), D, code.reshape(3, 4, -1), **problem)
    assert torch.equal(stacked.reshape(12, -1), found)
    assert polish(x[0], D, code[0], **problem).shape == (D.shape[1],)
    assert polish(x[:0], D, code[:0], **problem).shape == (0, D.shape[1])
    assert not polish(x, D, torch.zeros_like(code), **problem).any()
    if "m" in problem:
        assert int((found != 0).sum(1).max()) <= problem["m"]
        sparse = dk.SparseCode(*dk.top_m(code, D.shape[1]), D.shape[1])
        assert torch.equal(polish(x, D, sparse, **problem), found)
        torch.testing.assert_close(polish(3 * x, 3 * D, code, **problem), found)
    plan = dk.prepare(D=D)
    for _ in range(2):
        assert torch.equal(polish(x, D, code, plan=plan, **problem), found)


@pytest.mark.parametrize("scale", [2.0**50, 2.0**-50])
def test_signals_of_any_scale(scale):
    """float32, whose squares would leave its range."""
    x, D, code = (t.float() for t in guesses(rows=12))
    want = polish(x, D, code, m=12)
    for given in (code * scale, dk.SparseCode(*dk.top_m(code * scale, 50), 50)):
        found = polish(x * scale, D, given, m=12) / scale
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    mixed = polish(torch.cat((x, x * scale)), D, torch.cat((code, code * scale)), m=12)
    assert torch.equal(mixed[:12], want)


def test_strides_ties_and_what_is_given_stays():
    x, D, code = guesses(rows=13)
    want = polish(x, D, code, m=12)
    before = x.clone(), D.clone(), code.clone()
    wide = torch.cat((x, x), 1)[:, :30]  # rows with a gap
    for given in (
        (wide, D, code),
        (x.mT.contiguous().mT, D.mT.contiguous().mT, code.mT.contiguous().mT),
        (x.repeat_interleave(2, 0)[::2], D, code.repeat_interleave(2, 0)[::2]),
    ):
        torch.testing.assert_close(polish(*given, m=12), want, rtol=1e-9, atol=1e-11)
    assert torch.equal(polish(x, D, code, m=12), want)
    assert all(torch.equal(a, b) for a, b in zip((x, D, code), before, strict=True))
    # Of equals those with the lower index stay, as in top_m; -0.0 is no entry.
    atoms = torch.eye(6, dtype=D.dtype)
    guess = torch.tensor([[0.0, 1.0, -0.0, 1.0, -1.0, 1.0]], dtype=D.dtype)
    assert polish(guess, atoms, guess, m=2).nonzero()[:, 1].tolist() == [1, 3]


def test_atoms_of_zero_and_twins():
    """A zero atom has no code; of twins, which least squares cannot tell apart, the prediction
    decides."""
    _, D, _ = planted(rows=1)
    D = D.clone()
    D[:, 3], D[:, 5] = 0, D[:, 4]
    code = torch.zeros(1, D.shape[1], dtype=D.dtype)
    code[0, 3], code[0, 4], code[0, 5] = 2.0, 0.5, 1.5
    found = polish(2 * D[:, 4][None], D, code, m=3)
    assert found[0, 3] == 0
    torch.testing.assert_close(found[0, 4:6], code[0, 4:6])


def test_arguments_are_named():
    x, D, code = guesses(rows=2)
    for change, message in (
        (dict(), "exactly one of m and lam, got m=None and lam=None"),
        (dict(m=1, lam=0.1), "exactly one of m and lam, got m=1 and lam=0.1"),
        (dict(m=0), "m must be in .* got 0|m must be >= 1"),
        (dict(m=51), "m must be .*got 51"),
        (dict(lam=-1.0), "lam must be .*got -1"),
        (dict(m=2, ridge=0.0), "ridge must be .*got 0"),
        (dict(m=2, ridge=torch.inf), "ridge must be .*got inf"),
        (dict(m=2, code=code[:1]), "code must have shape"),
        (dict(m=2, code=code * torch.nan), "code must be finite"),
        (dict(m=2, x=x * torch.inf), "x must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            polish(**(dict(x=x, D=D, code=code) | change))
