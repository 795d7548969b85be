"""Orthogonal matching pursuit by the CUDA kernels against the reference in float64: supports and
counts alike, values and objectives within rounding."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.ops.omp import omp as pursue
from deepl0_kernels.solvers import omp as solve
from python_tests.solvers.problems import planted

from . import build
from .emulator import BIG, SMALL
from .recording import recording

TOL = 1e-6

# The package shows the function of this name.
operator = importlib.import_module("deepl0_kernels.ops.omp")


def unit(n: int, p: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, p, generator=g), dim=0)


def signals(rows: int, n: int, seed: int) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(100 + seed))


def check(ops, x: Tensor, D: Tensor, m: int, positive: bool = False, tol: float = TOL) -> None:
    got = ops.omp(x, D, m, tol, positive)
    same(got, reference.omp(x.double(), D.double(), m, tol, positive))


def same(got, want) -> None:
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
    values, indices, count, objective = got
    assert torch.equal(indices, want[1])
    assert torch.equal(count, want[2])
    torch.testing.assert_close(values.double(), want[0].double(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(objective.double(), want[3].double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(
    ("rows", "n", "p", "m"),
    [(2, 1, 1, 1), (2, 1, 6, 1), (3, 7, 5, 3), (4, 20, 37, 9), (2, 31, 257, 14), (1, 40, 1100, 8),
     (2, 140, 150, 37)],
)  # fmt: skip
def test_sizes(ops, rows, n, p, m, positive):
    """Columns cut off, more of them than threads, several a thread; more atoms than lanes."""
    check(ops, signals(rows, n, p), unit(n, p, p), m, positive)


@pytest.mark.parametrize("device", [BIG, SMALL])
def test_whether_rows_are_kept_changes_no_support(ops, emulator, device):
    emulator.set_device(*device)
    check(ops, signals(3, 50, 1), unit(50, 301, 1), 20)
    (launch,) = emulator.launches
    assert (launch.shared > 4 * 304 * 20) == (device == BIG)


@pytest.mark.parametrize("positive", [False, True])
def test_all_atoms(ops, positive):
    """m = n = p: the code is the signal's in a basis."""
    n = 12
    D = unit(n, n, 3) + 2 * torch.eye(n)
    check(ops, signals(2, n, 5), torch.nn.functional.normalize(D, dim=0), n, positive)


def dependent() -> tuple[Tensor, Tensor]:
    """Signed copies of an atom, zeros, and rank 6; a zero signal, one that two atoms make."""
    x, D, _ = planted(n=12, p=20, rows=5, dtype=torch.float32)
    D[:, 3:9] = D[:, :1] * torch.tensor([1.0, -1, 1, 1, -1, 1])
    D[6:] = 0
    D = torch.nn.functional.normalize(D, dim=0)
    D[:, 9] = 0
    x[0] = 0
    x[1] = 2 * D[:, 15] - D[:, 11]
    return x, D


@pytest.mark.parametrize("positive", [False, True])
def test_dependent_atoms_end_a_pursuit(ops, positive):
    x, D = dependent()
    _, indices, count, objective = ops.omp(x, D, 10, TOL, positive)
    want = reference.omp(x.double(), D.double(), 10, TOL, positive)
    assert count[:2].tolist() == want[2][:2].tolist()
    assert (count <= 6).all()
    assert (indices.diff(dim=1) > 0).all()
    torch.testing.assert_close(objective[-1].double(), want[3][-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", [BIG, SMALL])
def test_coherent_atoms_cost_no_accuracy(ops, emulator, device):
    """Atoms of positive entries: values within 1.3e-5 here, by the CPU kernel's factor 1.4e-5."""
    emulator.set_device(*device)
    g = torch.Generator().manual_seed(4)
    D = torch.nn.functional.normalize(torch.rand(40, 60, generator=g) + 0.5, dim=0)
    x = torch.randn(3, 40, generator=g)
    values, indices, _, _ = ops.omp(x, D, 20, TOL, False)
    assert torch.equal(indices, reference.omp(x.double(), D.double(), 20, TOL)[1])
    for row, at, signal in zip(values, indices, x, strict=True):
        want = torch.linalg.lstsq(D[:, at].double(), signal.double()).solution
        assert (row - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("positive", [False, True])
def test_ties_go_to_the_lowest_index(ops, positive):
    """Exact sums; signs that alternate; equal correlations in one thread, in two, in two warps."""
    p = 700
    D = torch.eye(32)[:, torch.arange(p) % 32]
    x = torch.full((2, 32), 0.5)
    x[1] *= torch.tensor([1.0, -1.0]).repeat(16)
    x[1, 20] = 4
    check(ops, x, D, 11, positive)
    check(ops, x, D.flip(1), 11, positive)
    assert ops.omp(x, D, 11, TOL, positive)[1][0].tolist() == list(range(11))


@pytest.mark.parametrize("positive", [False, True])
def test_zeros_fill_the_lowest_free_indices(ops, positive):
    D = torch.eye(9)
    x = torch.zeros(4, 9)
    x[0, 7], x[1, 0], x[1, 2], x[2, 8] = 1.0, 2.0, 3.0, -0.0
    x[3] = -1
    check(ops, x, D, 5, positive)
    values, indices, count, _ = ops.omp(x, D, 5, TOL, positive)
    assert indices[:3].tolist() == [[0, 1, 2, 3, 7], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert values[:2].tolist() == [[0, 0, 0, 0, 1], [2, 0, 3, 0, 0]]
    assert count.tolist() == [1, 2, 0, 0 if positive else 5]


@pytest.mark.parametrize("positive", [False, True])
def test_tolerance(ops, positive):
    x, D, _ = planted(rows=4, dtype=torch.float32)
    for tol in (0.05, 0.3, 2.0):
        check(ops, x, D, 9, positive, tol)


@pytest.mark.parametrize("positive", [False, True])
def test_what_is_not_finite_is_not_chosen(ops, positive):
    """As the CPU kernel: a signal with such an entry has no code; an atom with a NaN is passed
    over; and subnormal correlations count."""
    x, D = signals(5, 20, 2), unit(20, 70, 2)
    x[0, 3], x[1, 4], x[2, 5], x[3] = torch.nan, torch.inf, -torch.inf, x[3] * 1e-41
    D[4, 9] = D[5, 66] = torch.nan
    got = ops.omp(x, D, 6, TOL, positive)
    want = torch.ops.deepl0.omp(x, D, 6, TOL, positive)
    assert got[2].tolist() == want[2].tolist() == [0, 0, 0, 6, 6]
    for i in (3, 4):
        assert torch.equal(got[1][i], want[1][i])
        assert not {9, 66} & set(got[1][i].tolist())
    torch.testing.assert_close(got[0][4], want[0][4], rtol=1e-4, atol=1e-5)


def leaving(n: int, p: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals of which nonnegative least squares takes atoms out again: atoms are close."""
    g = torch.Generator().manual_seed(seed)
    D = torch.nn.functional.normalize(torch.rand(n, p, generator=g), dim=0)
    code = torch.rand(4, p, generator=g) * (torch.rand(4, p, generator=g) < 0.3)
    return code @ D.T + 0.1 * torch.randn(4, n, generator=g), D


@pytest.mark.parametrize("seed", range(4))
def test_atoms_leave_and_come_back(ops, seed):
    x, D = leaving(40, 60, seed)
    want = reference.omp(x.double(), D.double(), 25, TOL, True)
    assert ((want[0] > 0).sum(1) < want[2]).any()
    got = ops.omp(x, D, 25, TOL, True)
    assert (got[0] >= 0).all()
    # From the first near-tie on a support may differ.
    alike = [i for i in range(4) if torch.equal(got[1][i], want[1][i])]
    assert len(alike) >= 3
    same([t[..., alike] if t is got[3] else t[alike] for t in got],
         [t[..., alike] if t is want[3] else t[alike] for t in want])  # fmt: skip


@pytest.mark.parametrize("positive", [False, True])
def test_layouts_and_blocks_of_rows(ops, emulator, force, positive):
    x, D = signals(5, 30, 7), unit(30, 50, 7)
    want = ops.omp(x, D, 8, TOL, positive)
    wide = torch.full((9, 61), torch.nan)
    for given in (wide[::2, 1::2], wide[::2, 3:33], wide.t()[:30, 4:9].t()):
        given.copy_(x)
        same(ops.omp(given, D.t().contiguous().t(), 8, TOL, positive), want)
    one = x[:1].expand(3, -1)
    assert torch.equal(ops.omp(one, D, 8, TOL, positive)[1], want[1][:1].expand(3, -1))
    emulator.launches.clear()
    force("rules", 2 * 52)
    same(ops.omp(x, D, 8, TOL, positive), want)
    assert [n.grid for n in emulator.launches] == [2, 2, 1]
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    same(ops.omp(x, D, 8, TOL, positive), want)


def test_without_signals(ops, emulator):
    found = ops.omp(torch.empty(0, 4), torch.eye(4), 2, TOL, False)
    assert [tuple(t.shape) for t in found] == [(0, 2), (0, 2), (0,), (3, 0)]
    assert emulator.launches == []


def test_what_does_not_fit_is_refused(ops):
    x, D = torch.ones(2, 4), torch.eye(4)
    for m in (0, 5, -1):
        with pytest.raises(RuntimeError, match=r"m must be in \[1, 4\]"):
            ops.omp(x, D, m, TOL, False)
    with pytest.raises(RuntimeError, match="do not fit"):
        ops.omp(x, torch.eye(5), 2, TOL, False)
    with pytest.raises(RuntimeError, match="must be float32"):
        ops.omp(x.double(), D.double(), 2, TOL, False)
    with pytest.raises(RuntimeError, match="takes p <= 16384 and m <= 128"):
        ops.omp(torch.ones(2, 1), torch.ones(1, 16385), 1, TOL, False)
    with pytest.raises(RuntimeError, match="takes p <= 16384 and m <= 128"):
        ops.omp(torch.ones(2, 129), torch.eye(129), 129, TOL, False)


def test_most_that_a_block_takes_fits_every_device(emulator):
    """99 KiB, the least from compute capability 8.0 on; offsets of results pass 2^31."""
    emulator.set_device(108, 101376)
    with recording(emulator) as launches:
        x, D = (torch.empty(*s, device="meta") for s in ((1 << 25, 128), (128, 16384)))
        for positive in (False, True):
            launches.clear()
            found = torch.ops.deepl0.omp(x, D, 128, TOL, positive)
            assert found[0].shape == (1 << 25, 128)
            assert sum(n.grid for n in launches) == 1 << 25
            assert all(n.shared + 96 <= 101376 and n.threads == 256 for n in launches)


class TestWhoServes:
    """The reference, as long as nobody asks for the kernel; and of what no block holds."""

    x, D = signals(3, 20, 3), unit(20, 40, 3)

    def served(self, device, x, D, m, positive=False):
        pursue(x.to(device), D.to(device), m, TOL, positive)
        assert dk.last_call().operator == "omp"
        return dk.last_call()[1::2]

    def test_on_request(self, device):
        why = "no GPU has measured the kernel: dk.use_backend('cuda') asks for it"
        assert self.served(device, self.x, self.D, 5) == ("reference", why)
        assert dk.backends()["omp"][device] == "reference"
        with dk.use_backend("cuda"):
            for x in (self.x, self.x[:0]):
                assert self.served(device, x, self.D, 5) == ("cuda", "forced by use_backend")

    def test_what_no_block_holds(self, device, monkeypatch):
        header = (build.CSRC / "cuda/omp.h").read_text()
        most = operator._MOST_ATOMS, operator._MOST_CHOSEN
        assert "kMostAtoms = {}, kMostChosen = {};".format(*most) in header
        monkeypatch.setattr(operator, "_MOST_ATOMS", 39)
        monkeypatch.setattr(operator, "_MOST_CHOSEN", 4)
        with dk.use_backend("cuda"):
            why = "the GPU kernel takes p <= 39 and m <= 4"
            for p, m in ((40, 3), (39, 5)):
                found = self.served(device, self.x, self.D[:, :p], m)
                assert found == ("reference", why)
            assert self.served(device, self.x, self.D[:, :39], 4)[0] == "cuda"
            why = "the GPU kernels have no float64"
            assert self.served(device, self.x.double(), self.D.double(), 5) == ("reference", why)

    @pytest.mark.parametrize("positive", [False, True])
    def test_the_solver(self, device, positive):
        x, D = self.x.to(device), 3 * self.D.to(device)
        want = solve(x, D, 5, positive=positive)
        with dk.use_backend("cuda"):
            got = solve(x, D, 5, positive=positive)
        assert torch.equal(got.code.indices, want.code.indices)
        assert torch.equal(got.converged, want.converged)
        torch.testing.assert_close(got.dense, want.dense, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.objective, want.objective, rtol=1e-4, atol=1e-5)
