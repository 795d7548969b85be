"""The margin of a support: what it promises holds, and no more than it promises."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import iht, iht_m, support_margin
from deepl0_kernels.solvers.step import safe_step

from .problems import planted

PROBLEMS = [dict(m=12), dict(lam=0.05)]


def solve(x, D, problem, **options):
    if "m" in problem:
        return iht_m(x, D, problem["m"], **options).code
    return iht(x, D, problem["lam"], **options).code


def support(code):
    return (code.to_dense() if isinstance(code, dk.SparseCode) else code) != 0


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("iterations", [1, 3, 2000])
def test_the_sign_says_whether_the_next_iteration_keeps_the_support(problem, iterations):
    _, D, _ = planted()
    x = torch.randn(200, 30, dtype=D.dtype)  # no code fits: supports take long to settle
    code = solve(x, D, problem, max_iter=iterations, tol=1e-300 if iterations < 9 else 1e-9)
    margin = support_margin(x, D, code, **problem)
    after = solve(x, D, problem, init=code, max_iter=1, tol=1e-300)
    same = (support(code) == support(after)).all(1)
    clear = margin.abs() > 1e-9
    assert torch.equal(same[clear], margin[clear] > 0)
    assert clear.double().mean() > 0.9
    if iterations == 3:
        assert 0 < same.double().mean() < 1  # both cases were seen
    if iterations > 3:
        assert (margin > 0).all()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_moves_below_the_margin_keep_it_and_one_just_above_does_not(problem):
    x, D, _ = planted(rows=100)
    mu = safe_step(D)
    code = solve(x, D, problem, tol=1e-9, max_iter=5000)
    margin = support_margin(x, D, code, **problem)
    a = code.to_dense() if "m" in problem else code
    u = a + mu * (x - a @ D.T) @ D

    def threshold(u):
        if "m" in problem:
            return dk.keep_top_m(u, problem["m"]) != 0
        return dk.hard_threshold(u, (2 * problem["lam"] * mu) ** 0.5) != 0

    kept = support(code)
    # The worst move: what is kept shrinks, the rest grows.
    worst = torch.where(kept, -u.sign(), torch.where(u >= 0, 1.0, -1.0))
    for factor, holds in ((0.999, True), (1.001, False)):
        moved = threshold(u + factor * margin[:, None] * worst)
        assert ((moved == kept).all(1) == holds).all()
    # A change of the signal that cannot move any entry of u further than that.
    delta = torch.randn_like(x)
    delta *= 0.999 * (margin / (mu * D.norm(dim=0).max()) / delta.norm(dim=1))[:, None]
    after = solve(x + delta, D, problem, init=code, max_iter=1, tol=1e-300)
    assert torch.equal(support(after), kept)


def test_shapes_and_whole_supports():
    x, D, _ = planted(rows=12)
    code = iht_m(x.reshape(3, 4, 30), D, 4).code
    margin = support_margin(x.reshape(3, 4, 30), D, code, m=4)
    assert margin.shape == (3, 4)
    dense = support_margin(x, D, code.to_dense().reshape(12, 50), m=4)
    assert torch.equal(dense.reshape(3, 4), margin)
    assert support_margin(x[0], D, iht(x[0], D, 0.05).code, lam=0.05).shape == ()
    assert support_margin(x[:0], D, x.new_zeros(0, 50), lam=0.05).shape == (0,)
    assert (support_margin(x, D, iht_m(x, D, 50).code, m=50) == torch.inf).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(), "exactly one of m and lam, got m=None and lam=None"),
        (dict(m=4, lam=0.1), "exactly one of m and lam, got m=4 and lam=0.1"),
        (dict(m=51), "m must be >= 1 and <= p = 50, got 51"),
        (dict(lam=-1.0), r"lam must be a finite number > 0, got -1\.0"),
        (dict(lam=0.1, step=0.0), r"step must be a finite number > 0, got 0\.0"),
        (dict(lam=0.1, code=torch.zeros(40, 49, dtype=torch.float64)), r"code must have shape"),
        (dict(lam=0.1, code=torch.zeros(40, 50)), "code must have the dtype of x"),
    ],
)
def test_bad_arguments(change, message):
    x, D, _ = planted()
    with pytest.raises(ValueError, match=message):
        support_margin(**(dict(x=x, D=D, code=x.new_zeros(40, 50)) | change))
    with pytest.raises(ValueError, match="code must have m = 5 entries, got 4"):
        support_margin(x, D, iht_m(x, D, 4, max_iter=1).code, m=5)
