"""The two problems: their iterations are their encoders' stages and their solvers'."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from deepl0_kernels.solvers import fista, iht, iht_m
from deepl0_kernels.training import L0Regularized, MSparse, Problem

G = torch.Generator().manual_seed(2)
D = torch.randn(10, 16, generator=G, dtype=torch.float64)
X = torch.randn(30, 10, generator=G, dtype=torch.float64)
L0, M_SPARSE = L0Regularized(lam=0.2), MSparse(m=4, l1_lam=0.3)
POSITIVE = [replace(problem, positive=True) for problem in (L0, M_SPARSE)]
both = pytest.mark.parametrize("problem", [L0, M_SPARSE], ids=["l0", "m_sparse"])
all_four = pytest.mark.parametrize("problem", [L0, M_SPARSE, *POSITIVE], ids=repr)


@all_four
def test_so_many_iterations_are_so_many_stages(problem):
    for k in (1, 2, 30):
        torch.testing.assert_close(problem.iterate(X, D, k), problem.encoder(D, k).eval()(X))
    halfway = problem.iterate(X, D, 5)
    assert not torch.equal(halfway, problem.iterate(X, D, 10))
    torch.testing.assert_close(problem.iterate(X, D, 5, halfway), problem.iterate(X, D, 10))


def test_optimal_codes_start_from_l1_and_end_where_the_solvers_do():
    options = dict(init="l1", tol=1e-5, max_iter=5_000)
    assert torch.equal(L0.optimal(X, D).dense, iht(X, D, 0.2, **options).dense)
    assert torch.equal(M_SPARSE.optimal(X, D).dense, iht_m(X, D, 4, l1_lam=0.3, **options).dense)
    del options["init"]  # with a history the solver takes other kernels, of other last bits
    assert torch.equal(L0.l1(X, D), fista(X, D, 0.2, history=False, **options).dense)
    assert torch.equal(M_SPARSE.l1(X, D), fista(X, D, 0.3, history=False, **options).dense)


@pytest.mark.parametrize("problem", POSITIVE, ids=repr)
def test_nonnegative_codes_all_the_way(problem):
    assert problem.formula.endswith(", a >= 0")
    signed = replace(problem, positive=False)
    for call in (
        lambda p: p.optimal(X, D).dense,
        lambda p: p.iterate(X, D, 7),
        lambda p: p.l1(X, D),
        lambda p: p.encoder(D).eval()(X),
        lambda p: p.lista(D)(X),
    ):
        assert (call(signed) < 0).any()
        codes = call(problem)
        assert (codes >= 0).all()
        assert (codes > 0).any()
    torch.testing.assert_close(problem.lista(D, 3000)(X), problem.l1(X, D), rtol=0, atol=5e-3)


@both
def test_a_problem_is_called_as_the_frame_says(problem):
    frame, own = vars(Problem), vars(type(problem))
    for name, promised in frame.items():
        if getattr(promised, "__isabstractmethod__", False):
            assert type(own[name]) is type(promised), name
            if inspect.isfunction(promised):
                taken, wanted = (inspect.signature(f).parameters for f in (own[name], promised))
                assert list(taken.values()) == list(wanted.values()), name
    assert problem.encoder(D).num_stages == problem.lista(D).num_stages == 2
    assert problem.encoder(D).tied
    assert not problem.encoder(D, tied=False).tied
