"""What solvers keep of a dictionary in a plan changes no bit of a result."""

import pickle

import pytest
import torch
from torch.nn.functional import normalize

import deepl0_kernels as dk
from deepl0_kernels.solvers import cosamp, fista, htp, iht, iht_m, omp, polish

SOLVERS = {
    "iht": lambda x, D, **plan: iht(x, D, 0.05, max_iter=20, **plan),
    "iht from l1": lambda x, D, **plan: iht(x, D, 0.05, init="l1", max_iter=20, **plan),
    "iht_m": lambda x, D, **plan: iht_m(x, D, 3, max_iter=20, **plan),
    "NIHT": lambda x, D, **plan: iht_m(x, D, 3, step="normalized", max_iter=9, **plan),
    "AIHT": lambda x, D, **plan: iht_m(x, D, 3, step="accelerated", max_iter=9, **plan),
    "fista": lambda x, D, **plan: fista(x, D, 0.1, max_iter=20, **plan),
    "omp": lambda x, D, **plan: omp(x, D, 3, **plan),
    "htp": lambda x, D, **plan: htp(x, D, 3, max_iter=5, **plan),
    "cosamp": lambda x, D, **plan: cosamp(x, D, 3, max_iter=5, **plan),
    "polish": lambda x, D, **plan: polish(x, D, x @ D, m=3, **plan),
}
WRITES = {
    "nothing": lambda D: None,
    "in place": lambda D: D.mul_(1.5),
    "one entry, through NumPy": lambda D: D.numpy().__setitem__((2, 5), 1.25),
    "another tensor in .data": lambda D: setattr(D, "data", D.flip(0)),
    "other strides": lambda D: setattr(D, "data", D.t().contiguous().t()),
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    parts = zip(
        (a.dense, a.objective, a.iterations, a.converged),
        (b.dense, b.objective, b.iterations, b.converged),
        strict=True,
    )
    return all(torch.equal(one, other) for one, other in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_the_bits_do_not_depend_on_the_plan(solve, dtype):
    D = normalize(torch.randn(16, 24, dtype=dtype), dim=0)
    x = torch.randn(5, 16, dtype=dtype)
    plan = dk.prepare(D=D)
    for write in WRITES.values():
        write(D)
        want = solve(x, D)
        for _ in range(2):  # what is seen for the first time, and what is kept
            assert same(solve(x, D, plan=plan), want)
    assert plan.nbytes >= D.nbytes


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_signals_that_float32_cannot_hold_take_their_own_way(solve):
    D = normalize(torch.randn(16, 24), dim=0)
    x = torch.randn(4, 16)
    x[1] *= 2.0**40
    plan = dk.prepare(D=D)
    want = solve(x, D)
    for _ in range(2):
        assert same(solve(x, D, plan=plan), want)


def test_what_depends_on_the_dictionary_alone_is_worked_out_once(monkeypatch):
    calls = []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda A: calls.append(1) or eigvalsh(A))
    D = normalize(torch.randn(16, 24), dim=0)
    plan = dk.prepare(D=D)
    for _ in range(3):
        iht_m(torch.randn(1, 16), D, 3, plan=plan)
        fista(torch.randn(1, 16), D, 0.1, plan=plan)
    assert len(calls) == 1
    D[0, 0] += 1
    iht_m(torch.randn(1, 16), D, 3, plan=plan)
    assert len(calls) == 2


def test_a_bad_dictionary_stays_bad():
    D = normalize(torch.randn(16, 24), dim=0)
    plan = dk.prepare(D=D)
    iht_m(torch.randn(2, 16), D, 3, plan=plan)
    D[3, 4] = torch.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="D must be finite, got 1 entries"):
            iht_m(torch.randn(2, 16), D, 3, plan=plan)
    with pytest.raises(ValueError, match=r"x must be \[..., n\] with n = 16"):
        iht_m(torch.randn(2, 15), D.nan_to_num(), 3, plan=plan)


def test_plans_of_a_dictionary_are_checked():
    with pytest.raises(ValueError, match="W must be a tensor"):
        dk.prepare()
    with pytest.raises(ValueError, match="W must be a tensor"):
        dk.prepare(S=torch.randn(3, 3), D=torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"D must have shape \[n, p\]"):
        dk.prepare(D=torch.randn(2, 3, 4))
    D = torch.randn(4, 6)
    for solve in SOLVERS.values():
        with pytest.raises(TypeError, match=r"plan must be what dk\.prepare returns, got int"):
            solve(torch.randn(2, 4), D, plan=3)
    # Encoders pass over a plan that has no W.
    W = torch.randn(6, 4)
    code = dk.encode_top_m(torch.randn(2, 4), W, None, 2, D=D, plan=dk.prepare(D=D))
    assert code.values.shape == (2, 2)


def test_copies_of_a_plan_keep_nothing():
    D = normalize(torch.randn(16, 24), dim=0)
    plan = dk.prepare(D=D)
    want = iht_m(torch.ones(1, 16), D, 3, plan=plan)
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.nbytes == 0
    assert same(iht_m(torch.ones(1, 16), D, 3, plan=copy), want)
