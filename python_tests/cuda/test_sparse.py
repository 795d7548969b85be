"""The gather stage, gather-sums, unit lists and their sums by the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import reference
from python_tests.oracle import hostile, same_values

from .emulator import SMALL

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 2.0**-24


def code(batch: int, p: int, m: int, *lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random code: values and ascending distinct indices [*lead, batch, m]."""
    at = torch.rand(*lead, batch, p).argsort(-1)[..., :m].sort(-1).values
    return torch.randn(*lead, batch, m), at


def selects(u64: torch.Tensor, slack: torch.Tensor, indices: torch.Tensor, m: int) -> bool:
    """Whether the indices are a selection of u within the rounding of its sums."""
    chosen = torch.zeros(u64.shape, dtype=torch.bool).scatter(1, indices, True)
    low = torch.where(chosen, u64.abs() + slack, torch.inf).amin(1)
    high = torch.where(chosen, -torch.inf, u64.abs() - slack).amax(1)
    return bool((low >= high).all()) and bool((chosen.sum(1) == m).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "p", "m"),
    [(5, 7, 7), (3, 100, 40), (2, 256, 3), (2, 500, 33), (1, 1000, 64), (1, 1500, 300)],
)
def test_gather_stage(ops, dtype, batch, p, m):
    wx, S = torch.randn(batch, p), torch.randn(p, p).to(dtype)
    values, indices = code(batch, p, m)
    z = reference.unpool(values, indices, p).double()
    u64 = wx.double() + z @ S.double().t()
    slack = (m + 2) * EPS * (wx.double().abs() + z.abs() @ S.double().t().abs())
    got, at = ops.gather_top_m(wx, values, indices, S.t().contiguous(), False)
    assert selects(u64, slack, at, m)
    rounding = {2: 2.0 ** (-8 if dtype == torch.bfloat16 else -11)}.get(dtype.itemsize, 0.0)
    slack += rounding * (u64.abs() + slack)
    assert ((got.double() - u64.gather(1, at)).abs() <= slack.gather(1, at)).all()
    assert torch.equal(got, got.to(dtype).float())
    assert (at.diff(dim=1) > 0).all()
    # The sum is the same wherever it is formed: exact against the selection of the gather-sum.
    again = ops.gather_top_m(wx[-1:], values[-1:], indices[-1:], S.t().contiguous(), False)
    assert torch.equal(again[0], got[-1:])
    assert torch.equal(again[1], at[-1:])


def test_gather_stage_with_ties_and_strides(ops):
    """Integers: every sum is exact, so the selection is that of the reference, bit for bit."""
    for p in (90, 1100):
        wx = hostile((3, p + 3), torch.float32, 1, "ties")[:, 1 : p + 1]
        St = hostile((p, p + 2), torch.float32, 2, "ties")[:, :p]
        values, indices = code(3, p, 20)
        values = values.round()
        u = wx + reference.unpool(values, indices, p) @ St
        for positive in (False, True):
            got, at = ops.gather_top_m(wx, values, indices, St, positive)
            want, want_at = reference.top_m(u, 20, positive)
            assert torch.equal(at, want_at)
            assert torch.equal(got, want)


@pytest.mark.parametrize(("p", "m"), [(120, 70), (1100, 300), (1030, 257)])
def test_gather_stage_of_nonnegative_codes(ops, p, m):
    """Fewer than m positive sums, none, and NaNs of both signs; sums of one and of two rounds."""
    wx = hostile((4, p), torch.float32, 3, "few_special")
    wx[1:3] = -wx[1:3].abs()
    wx[2, ::9] = -torch.nan
    wx[0, p // 3 :] = -wx[0, p // 3 :].abs()
    values, indices = torch.zeros(4, m), code(4, p, m)[1]
    values[:, -1] = 1.0  # the last atom, which is added to all
    St = torch.full((p, p), -0.0)
    want, want_at = reference.top_m(wx, m, True)
    got, at = ops.gather_top_m(wx, values, indices, St, True)
    assert torch.equal(at, want_at)
    assert same_values(got, want)
    assert not got[1].nan_to_num(0.0).any()


def test_gather_stage_of_rows_that_do_not_fit(ops, emulator):
    emulator.set_device(132, 17500)
    p, m = 1900, 9
    wx, St = torch.randn(2, p).round(), torch.randn(p, p).round()
    values, indices = code(2, p, m)
    values = values.round()
    u = wx + reference.unpool(values, indices, p) @ St
    u[1, 5:] = wx[1, 5:] = -1.0  # the other entries of the row of the code are zero
    values[1] = 0.0
    u[1, :5] = wx[1, :5]
    for positive in (False, True):
        want = reference.top_m(u, m, positive)
        got = ops.gather_top_m(wx, values, indices, St, positive)
        assert "gather_rows_kernel" in [n.kernel for n in emulator.launches]
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "units", "n", "m"), [(3, 9, 1, 1), (4, 40, 33, 35),
                                                        (2, 70, 260, 70)])  # fmt: skip
def test_gather_rows_and_dots(ops, dtype, batch, units, n, m):
    values, indices = code(batch, units, m)
    w, x = torch.randn(units, n + 3).to(dtype)[:, 1 : n + 1], torch.randn(batch, n).to(dtype)
    dense = reference.unpool(values, indices, units)
    want = dense @ w.float()
    torch.testing.assert_close(ops.gather_rows(values, indices, w, True), want, rtol=1e-5,
                               atol=1e-5)  # fmt: skip
    out = ops.gather_rows(values, indices, w.contiguous(), False)
    assert out.dtype == dtype
    half = torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), want, rtol=half + 1e-5, atol=1e-5)
    dots = ops.row_dots(indices, w, x)
    want = (x.float() @ w.float().t()).gather(1, indices)
    torch.testing.assert_close(dots, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "units"),
    [((0, 3), 5), ((1, 1), 1), ((50, 4), 6), ((2, 40, 3), 300), ((1100, 4), 70000)],
    ids=str,
)
def test_group(ops, shape, units):
    indices = torch.randint(units, shape) // (2 if units > 6 else 1)
    start, unit, entry = ops.group(indices, units)
    order = indices.flatten().sort(stable=True)
    assert torch.equal(entry.long(), order.indices)
    assert torch.equal(unit.long(), order.values)
    counts = torch.bincount(indices.flatten(), minlength=units)
    assert torch.equal(
        start.long(), torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("parts", "batch", "units", "m", "n"),
    # Many short lists; lists inside and across chunks; one list over many chunks; empty ones.
    [(1, 7, 40, 3, 5), (2, 60, 30, 4, 130), (1, 500, 3, 1, 4), (3, 20, 7, 7, 33)],
)
def test_combine(ops, dtype, parts, batch, units, m, n):
    c, indices = code(batch, units, m, parts)
    x = torch.randn(batch, n + 1).to(dtype)[:, :n]
    dense = sum(reference.unpool(c[k], indices[k], units) for k in range(parts))
    want = dense.double().t() @ x.double()
    lists = ops.group(indices, units)
    got = ops.combine(*lists, c, x)
    assert got.dtype == dtype
    bound = (parts * batch + 2) * EPS * (dense.double().abs().t() @ x.double().abs())
    if dtype != torch.float32:
        bound += torch.finfo(dtype).eps / 2 * (want.abs() + bound) + torch.finfo(dtype).tiny
    assert ((got.double() - want).abs() <= bound + 1e-30).all()
    assert torch.equal(got, ops.combine(*lists, c, x))


def test_combine_of_nothing_and_of_infinity(ops):
    """Units without entries get zeros, also where x has what 0 * inf would turn into NaN."""
    x = torch.full((5, 6), torch.inf)
    indices = torch.tensor([[1], [1], [1], [1], [1]])
    got = ops.combine(*ops.group(indices, 4), torch.ones(5, 1), x)
    assert torch.equal(got[1], torch.full((6,), torch.inf))
    assert (got[[0, 2, 3]] == 0).all()
    empty = torch.empty(0, 2, dtype=torch.long)
    assert (ops.combine(*ops.group(empty, 3), torch.empty(0, 2), torch.empty(0, 7)) == 0).all()


@pytest.mark.parametrize(("batch", "p", "m"), [(3, 8, 8), (70, 20, 3), (9, 300, 40), (2, 4100, 5)])
def test_outer(ops, batch, p, m):
    units = min(p, 20)
    du, rows = code(batch, units, min(m, units))
    z, columns = code(batch, p, min(m, units))
    start, _, entry = ops.group(rows, units)
    out = torch.full((units, p), torch.nan)
    ops.outer(start, entry, du, columns, z, out, False)
    want = reference.unpool(du, rows, units).double().t() @ reference.unpool(z, columns, p).double()
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    ops.outer(start, entry, du, columns, z, out, True)
    torch.testing.assert_close(out.double(), 2 * want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "p", "m"), [(3, 6, 6), (5, 50, 33), (1, 90, 70)])
def test_product_on_support(ops, dtype, batch, p, m):
    du, upper = code(batch, p, m)
    _, lower = code(batch, p, m)
    S = torch.randn(p, p).to(dtype)
    want = (reference.unpool(du, upper, p) @ S.float()).gather(1, lower)
    for s in (S, S.t().contiguous().t()):
        got = ops.product_on_support(upper, du, lower, s)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["gather_top_m", "gather_rows", "row_dots", "group",
                                      "product_on_support"])  # fmt: skip
def test_an_index_out_of_range_stops_the_kernel(ops, operator):
    p, values = 10, torch.ones(2, 2)
    square = torch.ones(p, p)
    for bad in (-1, 10):
        indices = torch.tensor([[0, 1], [2, bad]])
        call = {
            "gather_top_m": lambda i: ops.gather_top_m(torch.ones(2, p), values, i, square, False),
            "gather_rows": lambda i: ops.gather_rows(values, i, square, True),
            "row_dots": lambda i: ops.row_dots(i, square, torch.ones(2, p)),
            "group": lambda i: ops.group(i, p),
            "product_on_support": lambda i: ops.product_on_support(i, values, i, square),
        }[operator]
        with pytest.raises(RuntimeError, match=r"_kernel: DeviceTrap"):
            call(indices)


def test_small_shared_memory_changes_nothing(ops, emulator):
    wx, St = torch.randn(2, 1200), torch.randn(1200, 1200)
    values, indices = code(2, 1200, 5)
    want = ops.gather_top_m(wx, values, indices, St, False)
    emulator.set_device(*SMALL)
    got = ops.gather_top_m(wx, values, indices, St, False)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
