"""The Triton kernels of pooling and unpooling against the reference and an oracle of their own."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.reference.top_m import pack_mask
from python_tests.oracle import (
    STYLES,
    as_bits,
    hostile,
    same_bits,
    selectable,
    top_m_by_sorting,
)
from python_tests.triton.conftest import CHECKS, ENGINES, INTERPRETED, ONE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# p -> rows: more than one program has, and not a multiple. One column, ragged, a whole tile; the
# last in several warps.
SHORT = {1: 37, 2: 33, 15: 37, 17: 19, 64: 9, 100: 5, 513: 2, 1000: 2, 5000: 1}
# Of more than one segment: m = 32 is a tournament, m = p // 2 is counted by digits.
LONG = (9000, 20000)


def sizes(p: int, engine: str) -> list[int]:
    """Every kind of m; where each takes a compilation, those that differ in kernels."""
    if engine.startswith("sm"):
        return sorted({p // 2, min(p, 32)})
    return sorted({0, 1, p // 2, p - 1, p, min(p, 32)})


def shared(cases: list, at: int, among: int) -> list:
    """Interpreted, which takes long, the at-th part of the cases; other axes have the rest."""
    return cases[at % among :: among] if INTERPRETED else cases


def expect(
    u: torch.Tensor, m: int, positive: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(values, indices, dense) by integer moves of the reference's choice, so bit for bit."""
    indices = reference.top_m(u, m, positive)[1]
    bits = selectable(u, positive).gather(-1, indices)
    dense = torch.zeros_like(as_bits(u)).scatter(-1, indices, bits)
    return bits.view(u.dtype), indices, dense.view(u.dtype)


def sides(p: int, device: str) -> list[bool]:
    """Of u, and where that is quick of max(u, 0)."""
    quick = device == "cuda" or (INTERPRETED and p <= 1000)
    return [False, True] if quick else [False]


def check(u: torch.Tensor, m: int, device: str) -> None:
    for positive in sides(u.shape[-1], device):
        check_side(u, m, device, positive)


def check_side(u: torch.Tensor, m: int, device: str, positive: bool) -> None:
    """top_m, keep_top_m, unpool and apply_mask of one tensor, bit for bit."""
    want_values, want_indices, want_dense = expect(u, m, positive)
    on_device = u.to(device)
    values, indices = torch.ops.deepl0.top_m(on_device, m, positive)
    dense, mask = torch.ops.deepl0.keep_top_m(on_device, m, positive)
    p = u.shape[-1]
    kept = torch.zeros(u.shape, dtype=torch.bool).scatter(-1, want_indices, True)
    if positive:
        kept &= as_bits(want_dense) != 0
    assert torch.equal(indices.cpu(), want_indices)
    assert same_bits(values.cpu(), want_values)
    assert same_bits(dense.cpu(), want_dense)
    assert torch.equal(mask.cpu(), pack_mask(kept))
    assert same_bits(torch.ops.deepl0.unpool(values, indices, p).cpu(), want_dense)
    assert same_bits(torch.ops.deepl0.apply_mask(on_device, mask).cpu(), want_dense)


@pytest.mark.parametrize("p", SHORT)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_registers(engine, device, dtype, p):
    at = DTYPES.index(dtype)
    for i, m in enumerate(sizes(p, engine)):
        u = hostile((SHORT[p], p), dtype, p + m, STYLES[(i + p + at) % len(STYLES)])
        for positive in shared(sides(p, device), i + at, 2):
            check_side(u, m, device, positive)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_style(engine, device, dtype, style):
    at = DTYPES.index(dtype) + STYLES.index(style)
    for p, m in shared([(7, 3), (77, 20), (300, 150)], at, 3):
        check(hostile((5, p), dtype, m, style), m, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonnegative_codes(engine, device, dtype):
    """In registers, by a tournament, counted by digits: rows without as many positive entries, of
    none, and of NaNs of both signs, which stay."""
    few = hostile((3, 9100), dtype, 4, "few_special")
    few[1] = -few[1].abs()
    few[2] = torch.where(torch.arange(9100) % 1000 == 7, few[2], -few[2].abs())
    for p, m in ((77, 60), (9100, 50), (9100, 4600)):
        check_side(few[:, :p], m, device, True)


@pytest.mark.parametrize("p", LONG)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows(engine, device, dtype, p):
    at = DTYPES.index(dtype) + LONG.index(p)
    for i, m in shared(list(enumerate(sizes(p, engine))), at, 2):
        style = STYLES[(i + p + DTYPES.index(dtype)) % len(STYLES)]
        check(hostile((1 if p > 9000 else 2, p), dtype, p + m, style), m, device)


@pytest.mark.parametrize("style", ["ties", "equal", "zero", "special", "close"])
def test_ties_across_segments(engine, device, style):
    """Ties at the cut that begin in one segment and end in another."""
    u = hostile((1, 9001), torch.float32, 1, style)
    for m in (40, 4600, 9000):
        check(u, m, device)


def test_a_tournament_of_several_rounds(engine, device, monkeypatch):
    """p so large that the candidates of the segments do not fit in one row either."""
    from deepl0_kernels.triton import top_m

    monkeypatch.setattr(top_m, "FEW_PROGRAMS", 1)  # long segments: fewer programs to interpret
    u = hostile((1, 70000), torch.bfloat16, 0, "ties")
    u[0, -1] = 100.0
    check(u, 1500, device)
    if engine.startswith("sm"):
        return  # nothing new but time
    u = hostile((1, (1 << 18) + 77), torch.bfloat16, 0, "few_special")
    for m in (32, 30_000):
        values, indices = torch.ops.deepl0.top_m(u.to(device), m, False)
        want_values, want_indices, _ = expect(u, m)
        assert torch.equal(indices.cpu(), want_indices)
        assert same_bits(values.cpu(), want_values)


def test_batches_with_and_without_splitting(engine, device, monkeypatch):
    """The same bits whatever the number of programs per row."""
    from deepl0_kernels.triton import radix, top_m

    u = hostile((2, 9000), torch.float32, 5, "few_special")
    for programs in (1, 288):
        monkeypatch.setattr(radix, "FEW_PROGRAMS", programs)
        monkeypatch.setattr(top_m, "FEW_PROGRAMS", programs)
        check(u, 31, device)
        check(u, 3000, device)


def test_the_oracle_that_shares_no_code(engine, device):
    for style in STYLES:
        u = hostile((4, 60), torch.float32, 9, style)
        indices = torch.ops.deepl0.top_m(u.to(device), 11, False)[1].cpu()
        assert indices.tolist() == [top_m_by_sorting(row, 11) for row in u.tolist()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nans_of_every_payload_are_equal(engine, device, dtype):
    u = hostile((2, 40), dtype, 0, "normal")
    inf = as_bits(torch.tensor([torch.inf], dtype=dtype)).item()
    as_bits(u)[:, 5:35:3] = inf + torch.tensor(
        [1, 5, 2, 9, 3, 8, 4, 7, 6, 10], dtype=as_bits(u).dtype
    )
    as_bits(u)[:, 6] = inf
    for m in (3, 10, 11):
        check(u, m, device)
    assert torch.ops.deepl0.top_m(u.to(device), 3, False)[1][0].tolist() == [5, 8, 11]


def test_leading_dimensions_and_empty_tensors(engine, device):
    check(hostile((2, 3, 4, 40), torch.float32, 0, "ties"), 7, device)
    check(hostile((40,), torch.bfloat16, 0, "ties"), 7, device)
    for shape, m in (((0, 5), 2), ((3, 0), 0), ((2, 0, 9000), 4), ((4, 9000), 0)):
        check(torch.randn(shape), m, device)


@pytest.mark.parametrize(("p", "sizes"), [(40, (5, 20)), (9000, (5, 3000))])
def test_strides(engine, device, p, sizes):
    base = hostile((3, 2 * p + 3), torch.float16, p, "normal").to(device)
    views = {
        "columns": base[:, 3 : p + 3],
        "every other row and column": base[::2, : 2 * p : 2],
        "transposed": base[:, :p].t().contiguous().t(),
        "expanded": base[:1, :p].expand(3, p),
        "folded": base[:2, : 2 * p].unflatten(-1, (2, p)).transpose(0, 1),
    }
    if p > 40:
        views = {"columns": views["columns"]}  # the others differ in front of the kernels only
    for u in views.values():
        for m in sizes:
            want_values, want_indices, want_dense = expect(u.cpu(), m)
            values, indices = torch.ops.deepl0.top_m(u, m, False)
            dense, mask = torch.ops.deepl0.keep_top_m(u, m, False)
            assert torch.equal(indices.cpu(), want_indices)
            assert same_bits(values.cpu(), want_values)
            assert same_bits(dense.cpu(), want_dense)
            assert same_bits(torch.ops.deepl0.apply_mask(u, mask).cpu(), want_dense)
            spread = torch.stack([values, values], -1)[..., 0], indices.mT.contiguous().mT
            assert same_bits(torch.ops.deepl0.unpool(*spread, p).cpu(), want_dense)


def test_unpool_takes_indices_in_any_order_and_drops_what_is_out_of_range(engine, device):
    for p in (50, 5000):
        # Column 0 is nobody's, so that what leaks into the next row shows.
        indices = torch.stack([1 + torch.randperm(p - 1)[:33] for _ in range(5)])
        values = torch.randn(5, 33)
        want = torch.zeros(5, p).scatter(-1, indices, values)
        ops = torch.ops.deepl0
        assert torch.equal(ops.unpool(values.to(device), indices.to(device), p).cpu(), want)
        spoiled = indices.clone()
        spoiled[:, 0] = torch.tensor([-1, p, p + 7, -(1 << 40), 1 << 40])
        want = want.scatter(-1, indices[:, :1], 0.0)
        assert torch.equal(ops.unpool(values.to(device), spoiled.to(device), p).cpu(), want)


def test_gradients_through_the_public_operators(engine, device):
    u = torch.randn(3, 4, 70, device=device)
    weight = torch.randn(3, 4, 70, device=device)
    for call in (
        lambda u: dk.top_m(u, 9)[0] * weight[..., :9],
        lambda u: dk.keep_top_m(u, 9) * weight,
        lambda u: dk.top_m(u, 40, positive=True)[0] * weight[..., :40],
        lambda u: dk.keep_top_m(u, 40, positive=True) * weight,
        lambda u: dk.unpool(u[..., :9], dk.top_m(u, 9)[1], 80).square(),
    ):
        grads = []
        for backend in (None, "reference"):
            leaf = u.clone().requires_grad_()
            with dk.use_backend(backend):
                grads.append(torch.autograd.grad(call(leaf).sum(), leaf)[0])
        assert torch.equal(*grads)


# The emulator of PTX copies whole storages: not for it.
if DIRECT := [name for name in ENGINES if not name.startswith("sm")]:

    @pytest.mark.parametrize("engine", DIRECT, indirect=True)
    def test_offsets_beyond_2_to_the_31(engine, device, monkeypatch):
        """Rows 2^30 entries apart; of the 4 GiB between only touched pages are ever mapped."""
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        ops = torch.ops.deepl0
        for p, m in ((64, 9), (9000, 9), (9000, 3000)):
            want = hostile((3, p), torch.bfloat16, 0, "few_special")
            u = torch.empty((2 << 30) + p, dtype=torch.bfloat16, device=device)
            u = u.as_strided((3, p), (1 << 30, 1)).copy_(want)
            mask = ops.keep_top_m(want.to(device), m, False)[1]
            for ours, small in zip(
                (*ops.top_m(u, m, False), *ops.keep_top_m(u, m, False), ops.apply_mask(u, mask)),
                (*expect(want, m)[:2], expect(want, m)[2], mask.cpu(), expect(want, m)[2]),
                strict=True,
            ):
                assert torch.equal(ours.cpu().nan_to_num(7.0), small.nan_to_num(7.0))


# On a GPU python_tests/ops checks the registration.
@pytest.mark.parametrize("engine", ONE[:1], indirect=True)
def test_opcheck(engine, device):
    ops = torch.ops.deepl0
    u = torch.randn(3, 20, device=device)
    values, indices = dk.top_m(u, 4)
    mask = ops.keep_top_m(u, 4, False)[1]
    for op, args in (
        (ops.top_m, (u.clone().requires_grad_(), 4, False)),
        (ops.keep_top_m, (u.clone().requires_grad_(), 4, True)),
        (ops.unpool, (values.clone().requires_grad_(), indices, 20)),
        (ops.apply_mask, (u.clone().requires_grad_(), mask)),
    ):
        torch.library.opcheck(op.default, args, test_utils=CHECKS)


def test_compiles_whole_and_does_not_recompile_with_the_batch(engine, device):
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def step(u):
        values, indices = dk.top_m(u, 3)
        return dk.keep_top_m(u, 5) + dk.unpool(values, indices, u.shape[-1])

    torch._dynamo.reset()
    whole = torch.compile(step, fullgraph=True, dynamic=True, backend=count)
    aot = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5, 9):
        u = torch.randn(batch, 30, device=device)
        assert torch.equal(whole(u), step(u))
        leaf, want = u.clone().requires_grad_(), u.clone().requires_grad_()
        aot(leaf).sum().backward()
        step(want).sum().backward()
        assert torch.equal(leaf.grad, want.grad)
    assert graphs == 1
