"""Least squares by the Gram matrix: the kernels against torch's Cholesky and a known rank."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.ops.least_squares import least_squares
from python_tests.oracle import same_bits

FLOOR = 100 * 2.0**-23
OPERATOR = torch.ops.deepl0.least_squares


def unit(n: int, p: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    return torch.nn.functional.normalize(D, dim=0)


def system(n: int, p: int, s: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A Gram matrix, right sides and supports of distinct atoms, ascending."""
    g = torch.Generator().manual_seed(seed + 1)
    D = unit(n, p, seed)
    support = torch.rand(rows, p, generator=g).argsort(1)[:, :s].sort(1).values
    return D.T @ D, torch.randn(rows, s, generator=g, dtype=torch.float64), support


def close(got: Tensor, want: Tensor, gram: Tensor, support: Tensor) -> None:
    """Within docs/numerics.md: s kappa 2^-53 of the largest value of a row."""
    for g, w, at in zip(got, want, support, strict=True):
        at = at[at >= 0]
        kappa = torch.linalg.cond(gram[at][:, at]).item() if len(at) else 1.0
        bound = 8 * max(1, len(at)) * min(kappa, 1e6) * 2.0**-53 * max(1.0, w.abs().max().item())
        torch.testing.assert_close(g, w, rtol=0, atol=bound)


# Below, at and beyond the lanes and panels of every level.
SIZES = [*range(1, 18), 23, 24, 25, 31, 32, 33, 47, 63, 64, 65, 100]


@pytest.mark.parametrize("s", SIZES)
def test_it_is_the_reference(s):
    gram, right, support = system(s + 30, s + 40, s, 5, s)
    got = least_squares(gram, right, support, FLOOR)
    assert dk.last_call()[:2] == ("least_squares", "cpu")
    close(got, reference.least_squares(gram, right, support, FLOOR), gram, support)


@pytest.mark.parametrize("s", [1, 8, 20, 33])
def test_places_without_an_atom(s):
    gram, right, support = system(60, 80, s, 9, s)
    g = torch.Generator().manual_seed(3)
    support = support.masked_fill(torch.rand(support.shape, generator=g) < 0.4, -1)
    support[0], support[1, :-1] = -1, -1
    right = right.masked_fill(support < 0, torch.nan)  # nobody reads it
    got = least_squares(gram, right, support, FLOOR)
    assert not got[support < 0].any()
    want = reference.least_squares(gram, right.nan_to_num(), support, FLOOR)
    close(got, want, gram, support)
    # They are as if they were not there.
    for row, values, at in zip(got, right, support, strict=True):
        on = at >= 0
        alone = least_squares(gram, values[on][None], at[on][None], FLOOR)[0]
        assert same_bits(row[on], alone)


def test_all_atoms_in_any_order():
    gram, right, _ = system(50, 37, 37, 4)
    support = torch.stack([torch.randperm(37) for _ in range(4)])
    got = least_squares(gram, right, support, FLOOR)
    close(got, reference.least_squares(gram, right, support, FLOOR), gram, support)


@pytest.mark.parametrize("s", [4, 9, 16, 40])
def test_dependent_atoms_are_zero(s):
    """What is fitted does not depend on which atoms are taken."""
    D = unit(2 * s, 3 * s, s)
    D[:, 1], D[:, 2], D[:, 3] = D[:, 0], -D[:, 0], 0  # alike, of the other sign, no atom
    gram = D.T @ D
    support = torch.arange(s).expand(3, s).contiguous()
    support[1] = support[1].flip(0)
    x = torch.randn(3, 2 * s, dtype=torch.float64)
    right = (x @ D).gather(1, support)
    got = least_squares(gram, right, support, FLOOR)
    dense = torch.zeros(3, 3 * s, dtype=torch.float64).scatter(1, support, got)
    assert ((dense[:, :3] != 0).sum(1) == 1).all()
    assert not dense[:, 3].any()
    best = torch.linalg.lstsq(D[:, :s], x.T, driver="gelsd").solution
    torch.testing.assert_close(dense @ D.T, (D[:, :s] @ best).T)
    want = reference.least_squares(gram, right, support, FLOOR)
    want = torch.zeros_like(dense).scatter(1, support, want)
    torch.testing.assert_close(dense @ D.T, want @ D.T)


def test_of_equal_distances_the_lowest_place_is_taken():
    """On integers all is exact."""
    gram = torch.eye(6, dtype=torch.float64)
    gram[1, 4] = gram[4, 1] = 1.0
    gram[2, 5] = gram[5, 2] = -1.0
    right = torch.arange(1.0, 7.0, dtype=torch.float64).expand(2, 6)
    support = torch.stack((torch.arange(6), torch.arange(6).flip(0)))
    want = torch.tensor([[1.0, 2, 3, 4, 0, 0], [1, 2, 3, 0, 0, 6]], dtype=torch.float64)
    assert torch.equal(least_squares(gram, right, support, FLOOR), want)
    assert torch.equal(reference.least_squares(gram, right, support, FLOOR), want)


def test_the_farthest_atom_is_taken_first():
    """A short atom would depend on what comes after it, not before."""
    gram = torch.tensor([[1e-9, 2e-5], [2e-5, 1.0]], dtype=torch.float64)
    right, support = torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.tensor([[0, 1]])
    for solve in (least_squares, reference.least_squares):
        assert solve(gram, right, support, 1e-8).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("distance", [0.9, 1.1])
@pytest.mark.parametrize("at", [1, 7, 8, 30])
def test_the_floor_decides(distance, at):
    """A last atom whose squared distance from the span of the others is known."""
    D = torch.linalg.qr(torch.randn(64, 40, dtype=torch.float64)).Q
    square = distance * FLOOR
    D[:, at] = (1 - square) ** 0.5 * D[:, 0] + square**0.5 * D[:, at]
    gram = D.T @ D
    right, support = torch.ones(1, 31, dtype=torch.float64), torch.arange(31)[None]
    got = least_squares(gram, right, support, FLOOR)
    want = reference.least_squares(gram, right, support, FLOOR)
    assert torch.equal(got == 0, want == 0)
    assert (got == 0).sum() == (distance < 1)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_spoilt_right_sides_stay_in_their_rows():
    gram, right, support = system(40, 50, 20, 4)
    clean = least_squares(gram, right, support, FLOOR)
    right[1, 5], right[2, 19] = torch.nan, torch.inf
    got = least_squares(gram, right, support, FLOOR)
    assert got[1].isnan().all()
    assert not got[2].isfinite().any()
    assert same_bits(got[[0, 3]], clean[[0, 3]])
    want = reference.least_squares(gram, right, support, FLOOR)
    assert torch.equal(got.isfinite(), want.isfinite())


def test_an_atom_of_nan_depends_on_the_others():
    gram, right, support = system(40, 50, 12, 6)
    spoilt = int(support[0, 3])
    gram[spoilt] = gram[:, spoilt] = torch.nan
    got = least_squares(gram, right, support, FLOOR)
    assert got.isfinite().all()
    assert (got == 0).equal(support == spoilt)
    close(got, reference.least_squares(gram, right, support, FLOOR), gram.nan_to_num(), support)


def test_small_numbers():
    gram, right, support = system(40, 50, 12, 3)
    got = least_squares(gram, right * 2.0**-1060, support, FLOOR)
    want = reference.least_squares(gram, right * 2.0**-1060, support, FLOOR)
    torch.testing.assert_close(got, want, rtol=0, atol=64 * 2.0**-1074)
    assert got.any()
    tiny = torch.full((50, 50), 2.0**-1060, dtype=torch.float64)
    assert not least_squares(tiny, right, support, FLOOR).any()


@pytest.mark.parametrize(("rows", "s", "p"), [(0, 3, 5), (3, 0, 5), (0, 0, 0), (2, 0, 0)])
def test_empty(rows, s, p):
    gram, right = torch.eye(p, dtype=torch.float64), torch.ones(rows, s, dtype=torch.float64)
    support = torch.zeros(rows, s, dtype=torch.int64)
    for solve in (OPERATOR, reference.least_squares):
        assert solve(gram, right, support, FLOOR).shape == (rows, s)


def test_layouts_do_not_matter():
    gram, right, support = system(60, 70, 21, 7)
    want = least_squares(gram, right, support, FLOOR)

    def columns(t):
        return t.T.contiguous().T

    def apart(t):
        return torch.nn.functional.pad(t, (3, 2))[:, 3:-2]

    for change in (columns, apart, lambda t: t.repeat_interleave(2, 1)[:, ::2]):
        got = least_squares(change(gram), change(right), change(support), FLOOR)
        assert same_bits(got, want)
    one = OPERATOR(gram, right[:1].expand(3, -1), support[:1].expand(3, -1), FLOOR)
    assert same_bits(one, want[:1].expand(3, -1))


def test_a_row_does_not_depend_on_the_others():
    gram, right, support = system(60, 70, 33, 40)
    gram[support[5, 2]] = gram[:, support[5, 2]] = 0  # its rows start again
    want = least_squares(gram, right, support, FLOOR)
    assert same_bits(torch.cat([least_squares(gram, right[i : i + 1], support[i : i + 1], FLOOR)
                                for i in range(40)]), want)  # fmt: skip
    try:
        torch.set_num_threads(3)
        assert same_bits(least_squares(gram, right, support, FLOOR), want)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("bad", [-2, 5, 2**40, -(2**63), 2**63 - 1])
def test_indices_out_of_range_are_refused(bad):
    support = torch.tensor([[0, 1], [4, bad]])
    with pytest.raises(RuntimeError, match=rf"support must be in \[0, 5\), or -1, got {bad}"):
        OPERATOR(torch.eye(5).double(), torch.ones(2, 2).double(), support, FLOOR)


def test_what_does_not_fit_is_refused():
    gram, right, support = system(10, 8, 3, 2)
    for args, said in (
        ((gram[:5], right, support, FLOOR), "gram must be"),
        ((gram, right[:1], support, FLOOR), "right and support must be"),
        ((gram, right[0], support[0], FLOOR), "right and support must be"),
        ((gram.float(), right, support, FLOOR), "gram and right must be float64"),
        ((gram, right.float(), support, FLOOR), "gram and right must be float64"),
        ((gram, right, support.int(), FLOOR), "support must be int64"),
        ((gram, right, support, -1.0), "floor must be >= 0"),
        ((gram, right, support, float("nan")), "floor must be >= 0"),
    ):
        with pytest.raises(RuntimeError, match=said):
            OPERATOR(*args)


def test_the_reference_forms_a_few_systems_at_a_time(monkeypatch):
    gram, right, support = system(40, 50, 20, 7)
    want = reference.least_squares(gram, right, support, FLOOR)
    monkeypatch.setattr(
        importlib.import_module(reference.least_squares.__module__), "_AT_ONCE", 900
    )
    torch.testing.assert_close(reference.least_squares(gram, right, support, FLOOR), want)


def test_a_gradient_is_the_references():
    """Of the solvers' own class, which asks for the operator where no gradient is wanted."""
    from deepl0_kernels.solvers.pursuit import LeastSquares

    D, support = unit(12, 20).requires_grad_(), torch.arange(5).expand(2, 5)
    b = torch.randn(2, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda D, b: LeastSquares(D).values(b, support), (D, b))
    assert torch.autograd.gradgradcheck(lambda b: LeastSquares(D)(b, support, support > 1), (b,))
    with torch.no_grad():
        got = LeastSquares(D).values(b, support)
    assert dk.last_call().operator == "least_squares"
    torch.testing.assert_close(got, LeastSquares(D).values(b, support).detach())
