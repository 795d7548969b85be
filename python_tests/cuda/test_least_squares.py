"""Least squares by the CUDA kernel against the reference: the same atoms, near values."""

from __future__ import annotations

import importlib

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.ops.least_squares import least_squares
from deepl0_kernels.solvers import cosamp, htp
from python_tests.ops.test_least_squares import FLOOR, close, system, unit
from python_tests.oracle import same_bits
from python_tests.solvers.problems import planted

from . import build
from .recording import recording

# The package shows the function of this name.
operator = importlib.import_module("deepl0_kernels.ops.least_squares")


def check(ops, gram, right, support, floor=FLOOR) -> None:
    got = ops.least_squares(gram, right, support, floor)
    close(got, reference.least_squares(gram, right, support, floor), gram, support)


@pytest.mark.parametrize("s", [1, 2, 3, 30, 31, 32, 33, 64, 100])
def test_sizes(ops, s):
    """Rows in one warp, in several, a column that fills them."""
    check(ops, *system(s + 20, s + 30, s, 2, s))


def test_places_without_an_atom(ops):
    gram, right, support = system(60, 80, 40, 5)
    g = torch.Generator().manual_seed(3)
    support = support.masked_fill(torch.rand(support.shape, generator=g) < 0.4, -1)
    support[0], support[1, :-1] = -1, -1
    right = right.masked_fill(support < 0, torch.nan)  # nobody reads it
    got = ops.least_squares(gram, right, support, FLOOR)
    assert not got[support < 0].any()
    close(got, reference.least_squares(gram, right.nan_to_num(), support, FLOOR), gram, support)


def test_all_atoms_in_any_order(ops):
    gram, right, _ = system(40, 37, 37, 2)
    check(ops, gram, right, torch.stack([torch.randperm(37) for _ in range(2)]))


@pytest.mark.parametrize("s", [4, 9, 40])
def test_dependent_atoms_are_zero(ops, s):
    D = unit(2 * s, 3 * s, s)
    D[:, 1], D[:, 2], D[:, 3] = D[:, 0], -D[:, 0], 0  # alike, of the other sign, no atom
    support = torch.arange(s).expand(2, s).contiguous()
    support[1] = support[1].flip(0)
    x = torch.randn(2, 2 * s, dtype=torch.float64)
    gram, right = D.T @ D, (x @ D).gather(1, support)
    found = [solve(gram, right, support, FLOOR)
             for solve in (ops.least_squares, reference.least_squares)]  # fmt: skip
    got, want = (torch.zeros(2, 3 * s, dtype=x.dtype).scatter(1, support, z) for z in found)
    assert ((got[:, :3] != 0).sum(1) == 1).all()
    assert not got[:, 3].any()
    torch.testing.assert_close(got @ D.T, want @ D.T)


def test_of_equal_distances_the_lowest_place_is_taken(ops):
    """On integers all is exact: pairs that are alike in one warp and in two."""
    p = 70
    row, sign = torch.arange(p) % 35, 1.0 - 2 * (torch.arange(p) % 3 == 0)
    gram = torch.where(row[:, None] == row, sign[:, None] * sign, 0.0).double()
    right = torch.arange(1.0, p + 1, dtype=torch.float64).expand(3, p)
    support = torch.stack([torch.arange(p), torch.arange(p).flip(0), torch.randperm(p)])
    got = ops.least_squares(gram, right, support, FLOOR)
    assert torch.equal(got, reference.least_squares(gram, right, support, FLOOR))
    assert torch.equal(got[0], right[0] * (torch.arange(p) < 35))


def test_the_farthest_atom_is_taken_first(ops):
    gram = torch.tensor([[1e-9, 2e-5], [2e-5, 1.0]], dtype=torch.float64)
    right, support = torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.tensor([[0, 1]])
    assert ops.least_squares(gram, right, support, 1e-8).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("distance", [0.9, 1.1])
@pytest.mark.parametrize("at", [1, 7, 33])
def test_the_floor_decides(ops, distance, at):
    D = torch.linalg.qr(torch.randn(64, 40, dtype=torch.float64)).Q
    square = distance * FLOOR
    D[:, at] = (1 - square) ** 0.5 * D[:, 0] + square**0.5 * D[:, at]
    right, support = torch.ones(1, 36, dtype=torch.float64), torch.arange(36)[None]
    got = ops.least_squares(D.T @ D, right, support, FLOOR)
    assert (got == 0).sum() == (distance < 1)
    want = reference.least_squares(D.T @ D, right, support, FLOOR)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_what_is_not_finite(ops):
    gram, right, support = system(40, 50, 20, 4)
    clean = ops.least_squares(gram, right, support, FLOOR)
    right[1, 5], right[2, 19] = torch.nan, torch.inf
    got = ops.least_squares(gram, right, support, FLOOR)
    assert got[1].isnan().all()
    assert not got[2].isfinite().any()
    assert same_bits(got[[0, 3]], clean[[0, 3]])
    spoilt = int(support[0, 3])
    gram[spoilt] = gram[:, spoilt] = torch.nan
    got = ops.least_squares(gram, right[::3], support[::3], FLOOR)
    assert (got == 0).equal(support[::3] == spoilt)
    want = reference.least_squares(gram, right[::3], support[::3], FLOOR)
    close(got, want, gram.nan_to_num(), support[::3])


def test_small_numbers(ops):
    gram, right, support = system(40, 50, 12, 2)
    got = ops.least_squares(gram, right * 2.0**-1060, support, FLOOR)
    want = reference.least_squares(gram, right * 2.0**-1060, support, FLOOR)
    torch.testing.assert_close(got, want, rtol=0, atol=64 * 2.0**-1074)
    tiny = torch.full((50, 50), 2.0**-1060, dtype=torch.float64)
    assert not ops.least_squares(tiny, right, support, FLOOR).any()


def test_layouts_and_order_of_blocks(ops, emulator):
    gram, right, support = system(60, 70, 21, 4)
    gram[support[2, 2]] = gram[:, support[2, 2]] = 0  # its rows start again
    want = ops.least_squares(gram, right, support, FLOOR)

    def apart(t):
        return torch.nn.functional.pad(t, (3, 2))[:, 3:-2]

    for change in (lambda t: t.T.contiguous().T, apart,
                   lambda t: t.repeat_interleave(2, 1)[:, ::2]):  # fmt: skip
        got = ops.least_squares(change(gram), change(right), change(support), FLOOR)
        assert same_bits(got, want)
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    assert same_bits(ops.least_squares(gram, right, support, FLOOR), want)
    for i in range(4):
        rows = slice(i, i + 1)
        assert same_bits(ops.least_squares(gram, right[rows], support[rows], FLOOR), want[rows])


@pytest.mark.parametrize(("rows", "s", "p"), [(0, 3, 5), (3, 0, 5), (0, 0, 0), (2, 0, 0)])
def test_without_systems(ops, emulator, rows, s, p):
    gram, right = torch.eye(p, dtype=torch.float64), torch.ones(rows, s, dtype=torch.float64)
    support = torch.zeros(rows, s, dtype=torch.int64)
    assert ops.least_squares(gram, right, support, FLOOR).shape == (rows, s)
    assert emulator.launches == []


@pytest.mark.parametrize("bad", [-2, 8, 2**40, -(2**63)])
def test_an_index_out_of_range_stops_the_kernel(ops, bad):
    gram, right, support = system(10, 8, 3, 2)
    support[1, 2] = bad
    with pytest.raises(RuntimeError, match="DeviceTrap"):
        ops.least_squares(gram, right, support, FLOOR)


def test_what_does_not_fit_is_refused(ops):
    gram, right, support = system(10, 8, 3, 2)
    for args, said in (
        ((gram[:5], right, support, FLOOR), "gram must be"),
        ((gram, right[:1], support, FLOOR), "right and support must be"),
        ((gram.float(), right, support, FLOOR), "gram and right must be float64"),
        ((gram, right, support.int(), FLOOR), "support must be int64"),
        ((gram, right, support, -1.0), "floor must be >= 0"),
    ):
        with pytest.raises(RuntimeError, match=said):
            ops.least_squares(*args)
    wide = torch.zeros(1, 155, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="takes s <= 154, got 155"):
        ops.least_squares(gram, wide.double(), wide, FLOOR)


def test_most_that_a_block_takes_fits_every_device(ops, emulator):
    """99 KiB, the least from compute capability 8.0 on; offsets of results pass 2^31."""
    emulator.set_device(108, 101376)
    check(ops, *system(180, 190, 154, 1))
    with recording(emulator) as launches, dk.use_backend("cuda"):
        right = torch.empty(1 << 24, 154, dtype=torch.float64, device="meta")
        gram = torch.empty(500, 500, dtype=torch.float64, device="meta")
        found = torch.ops.deepl0.least_squares(gram, right, right.long(), FLOOR)
        assert found.shape == right.shape
        (launch,) = launches
        assert (launch.grid, launch.threads) == (1 << 24, 160)
        assert launch.shared + 96 <= 101376


class TestWhoServes:
    """The reference, as long as nobody asks for the kernel; and of what no block holds."""

    gram, right, support = system(30, 40, 9, 4)

    def served(self, device):
        of = (t.to(device) for t in (self.gram, self.right, self.support))
        least_squares(*of, FLOOR)
        assert dk.last_call().operator == "least_squares"
        return dk.last_call()[1::2]

    def test_on_request(self, device, monkeypatch):
        why = "no GPU has measured the kernel: dk.use_backend('cuda') asks for it"
        assert self.served(device) == ("reference", why)
        assert dk.backends()["least_squares"][device] == "reference"
        header = (build.CSRC / "cuda/least_squares.h").read_text()
        assert f"kMostPlaces = {operator._MOST_PLACES};" in header
        with dk.use_backend("cuda"):
            assert self.served(device) == ("cuda", "forced by use_backend")
            monkeypatch.setattr(operator, "_MOST_PLACES", 8)
            assert self.served(device) == ("reference", "the GPU kernel takes s <= 8")

    @pytest.mark.parametrize("solver", [htp, cosamp])
    def test_the_solvers(self, device, solver):
        x, D, _ = planted(rows=4, dtype=torch.float32)
        x, D = x.to(device), D.to(device)
        want = solver(x, D, 5, max_iter=5)
        with dk.use_backend("cuda"):
            got = solver(x, D, 5, max_iter=5)
        assert torch.equal(got.code.indices, want.code.indices)
        torch.testing.assert_close(got.dense, want.dense, rtol=1e-4, atol=1e-5)
