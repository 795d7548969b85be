"""batch_top_m against an oracle of its own and the reference, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deepl0_kernels as dk
from python_tests.oracle import (
    DTYPES,
    STYLES,
    as_bits,
    hostile,
    rows,
    same_bits,
    same_values,
    top_m_by_sorting,
)

BACKENDS = ("reference", "cpu")


def of_max(u: torch.Tensor, positive: bool) -> torch.Tensor:
    """What is selected from, by integer moves: u, or what is > 0 or NaN of it."""
    return as_bits(u).masked_fill(u <= 0, 0).view(u.dtype) if positive else u.contiguous()


def expect(u: torch.Tensor, at: torch.Tensor, positive: bool):
    """(offsets, values, indices) of the positions ``at`` of the batch, row after row."""
    p = max(1, u.shape[-1])
    counts = torch.bincount(at // p, minlength=u.shape[:-1].numel())
    offsets = torch.cat([at.new_zeros(1), counts.cumsum(0)])
    values = as_bits(of_max(u, positive)).flatten()[at].view(u.dtype)
    return offsets, values, at % p


def check(got, want) -> None:
    assert torch.equal(got[0], want[0])
    assert same_values(got[1], want[1])
    assert torch.equal(got[2], want[2])
    assert got[0].dtype == got[2].dtype == torch.int64


def both(u: torch.Tensor, m: int, positive: bool = False) -> None:
    """The kernel equals the reference."""
    got = dk.batch_top_m(u, m, positive=positive)
    with dk.use_backend("reference"):
        check(got, dk.batch_top_m(u, m, positive=positive))


@pytest.mark.parametrize("backend", BACKENDS)
@given(u=rows(100), data=st.data())
def test_selection_is_the_contract(backend, u, data):
    p, batch = u.shape[-1], u.shape[:-1].numel()
    m = data.draw(st.one_of(st.sampled_from((0, p)), st.integers(0, p)))
    positive = data.draw(st.booleans())
    before = u.clone()
    with dk.use_backend(backend):
        got = dk.batch_top_m(u, m, positive=positive)
    assert same_bits(u, before)
    flat = of_max(before, positive).flatten().tolist()
    at = torch.tensor(top_m_by_sorting(flat, batch * m), dtype=torch.int64)
    want = expect(before, at, positive)
    check(got, want)
    if backend == "cpu":
        assert same_bits(got[1], want[1])


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_equals_reference_where_candidates_are_cut_down(dtype, style, positive):
    for shape in ((3, 9001), (200, 333), (1, 40000), (5000, 7)):
        u = hostile(shape, dtype, 3, style)
        for m in {1, shape[1] // 100, shape[1] // 3, shape[1] - 1} - {0}:
            both(u, m, positive)


def test_as_torch_topk_of_the_flat_batch():
    """Without ties the entries are those of torch.topk, which orders them otherwise."""
    batch, p, m = 40, 300, 7
    u = (1.0 + torch.randperm(batch * p)).view(batch, p) * torch.tensor([1.0, -1.0]).repeat(p // 2)
    offsets, values, indices = dk.batch_top_m(u, m)
    at = u.abs().flatten().topk(batch * m).indices.sort().values
    check((offsets, values, indices), expect(u, at, False))
    dense = torch.sparse_csr_tensor(offsets, indices, values, u.shape).to_dense()
    assert torch.equal(dense, torch.zeros(batch * p).scatter(0, at, u.flatten()[at]).view_as(u))
    relu = u.relu().flatten()
    best = relu.topk(batch * m).indices.sort().values
    check(dk.batch_top_m(u, m, positive=True), expect(u, best, True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_first_rows(backend):
    u = torch.ones(4, 5)
    u[2, 3], u[3, 0] = -2.0, torch.nan
    with dk.use_backend(backend):
        offsets, values, indices = dk.batch_top_m(u, 2)
        assert offsets.tolist() == [0, 5, 6, 7, 8]
        assert indices.tolist() == [0, 1, 2, 3, 4, 0, 3, 0]
        assert values.nan_to_num(9.0).tolist() == [1.0] * 6 + [-2.0, 9.0]
        assert dk.batch_top_m(torch.ones(3, 4), 1)[0].tolist() == [0, 3, 3, 3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_of_both_signs_then_inf(backend, dtype):
    u = torch.tensor(
        [[1.0, -torch.inf, 0.0, -torch.nan], [torch.nan, torch.inf, -3.0, -0.0]], dtype=dtype
    )
    with dk.use_backend(backend):
        for m, positive, want in (
            (1, False, [3, 4]),
            (2, False, [1, 3, 4, 5]),
            (3, False, [0, 1, 3, 4, 5, 6]),
            (1, True, [3, 4]),
            (2, True, [0, 3, 4, 5]),
            (3, True, [0, 1, 2, 3, 4, 5]),
        ):
            got = dk.batch_top_m(u, m, positive=positive)
            check(got, expect(u, torch.tensor(want), positive))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fewer_positive_entries_than_are_kept(backend, dtype):
    u = -torch.rand(6, 50).to(dtype) - 0.5
    u[4, 7], u[5, 1] = 2.0, torch.finfo(dtype).smallest_normal / 2
    leaf = u.clone().requires_grad_()
    with dk.use_backend(backend):
        offsets, values, indices = dk.batch_top_m(leaf, 3, positive=True)
        (grad,) = torch.autograd.grad(values.sum(), leaf)
    # 18 entries: the two positive ones and the first 16 of the others.
    at = torch.tensor([*range(16), 4 * 50 + 7, 5 * 50 + 1])
    check((offsets, values.detach(), indices), expect(u, at, True))
    assert not values[:16].signbit().any()
    assert torch.equal(grad, (u > 0).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_and_whole(backend, dtype):
    with dk.use_backend(backend):
        for shape, m in (((0, 5), 2), ((3, 0), 0), ((2, 0, 5), 1), ((0, 0), 0), ((4, 6), 0)):
            offsets, values, indices = dk.batch_top_m(torch.randn(shape).to(dtype), m)
            batch = torch.Size(shape[:-1]).numel()
            assert offsets.tolist() == [0] * (batch + 1)
            assert values.shape == indices.shape == (0,)
            assert values.dtype == dtype
        u = hostile((3, 4, 9), dtype, 1, "special")
        check(dk.batch_top_m(u, 9), expect(u, torch.arange(108), False))
        u = hostile((9,), dtype, 1, "normal")
        offsets, values, indices = dk.batch_top_m(u, 4)
        row = dk.top_m(u, 4) if backend == "reference" else dk.reference.top_m(u, 4)
        assert offsets.tolist() == [0, 4]
        assert torch.equal(indices, row[1])
        assert same_bits(values, row[0])


def test_strides_and_misaligned_memory():
    base = hostile((12, 2 * 333 + 3), torch.float16, 3, "few_special")
    for u in (
        base[:, 3:336],
        base[::2, : 2 * 333 : 2],
        base[:, :333].t().contiguous().t(),
        base[:1, :333].expand(5, 333),
        base[:, :333].unflatten(0, (3, 4)).transpose(0, 1),
        torch._neg_view(base),
    ):
        for positive in (False, True):
            check(
                dk.batch_top_m(u, 9, positive=positive),
                dk.batch_top_m(
                    u.clone(memory_format=torch.contiguous_format), 9, positive=positive
                ),
            )
            both(u, 9, positive)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["few_special", "ties", "equal", "zero"])
def test_any_number_of_threads_gives_the_same_bits(style, dtype):
    u = hostile((3000, 129), dtype, 1, style)
    before = torch.get_num_threads()
    for m, positive in ((3, False), (3, True), (60, False)):
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(dk.batch_top_m(u, m, positive=positive))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(same_bits(a, b) if a.is_floating_point() else torch.equal(a, b)
                       for a, b in zip(results[0], other, strict=True))  # fmt: skip
    both(u, 3)


def test_offsets_beyond_2_to_the_31():
    """More than 2^31 elements of bfloat16 (4 GiB), of which the last row must be right."""
    p, size = 1 << 16, (1 << 31) + (1 << 17)
    u = torch.zeros(size // p, p, dtype=torch.bfloat16)
    u[-1, -3:] = torch.tensor([1.0, -2.0, 3.0], dtype=torch.bfloat16)
    batch = len(u)
    offsets, values, indices = dk.batch_top_m(u, 1)
    assert indices[-3:].tolist() == [p - 3, p - 2, p - 1]
    assert values[-3:].tolist() == [1.0, -2.0, 3.0]
    assert offsets[-2:].tolist() == [batch - 3, batch]
    assert indices[:-3].tolist() == list(range(batch - 3))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend, positive):
    u = torch.randn(2, 4, 11, dtype=torch.float64, requires_grad=True)
    with dk.use_backend(backend):

        def call(u):
            return dk.batch_top_m(u, 4, positive=positive)[1]

        assert torch.autograd.gradcheck(call, (u,))
        assert torch.autograd.gradgradcheck(call, (u,))
        assert dk.last_call().backend == backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_goes_to_the_selected_only_even_where_they_are_zero(backend):
    u = torch.tensor([[0.0, -0.0, 0.0], [0.0, 0.0, 2.0]], requires_grad=True)
    with dk.use_backend(backend):
        for positive, want in ((False, [[1, 1, 1], [0, 0, 1]]), (True, [[0, 0, 0], [0, 0, 1]])):
            values = dk.batch_top_m(u, 2, positive=positive)[1]
            assert torch.autograd.grad(values.sum(), u)[0].tolist() == want


def test_vmap_is_the_references():
    u = torch.randn(3, 4, 9)
    with pytest.raises(NotImplementedError, match=r"batch_top_m.*use_backend\('reference'\)"):
        torch.func.vmap(lambda u: dk.batch_top_m(u, 2))(u)
    with dk.use_backend("reference"):
        got = torch.func.vmap(lambda u: dk.batch_top_m(u, 2))(u)
        for i in range(3):
            check([t[i] for t in got], dk.batch_top_m(u[i], 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda u: dk.batch_top_m(u, 8), ValueError, ("m must be", "p = 7", "8")),
        (lambda u: dk.batch_top_m(u, -1), ValueError, ("m must be", "-1")),
        (lambda u: dk.batch_top_m(u, 2.5), TypeError, ("m must be an integer", "2.5")),
        (lambda u: dk.batch_top_m(u, True), TypeError, ("m must be an integer", "True")),
        (lambda u: dk.batch_top_m(u, 2, positive=1), TypeError, ("positive must be", "1")),
        (lambda u: dk.batch_top_m(u.long(), 2), ValueError, ("u must be", "int64")),
        (lambda u: dk.batch_top_m(u[0, 0], 0), ValueError, ("u must have", "()")),
        (lambda u: dk.batch_top_m(u.tolist(), 2), TypeError, ("u must be a tensor", "list")),
        (lambda u: dk.batch_top_m(u.to_sparse(), 2), ValueError, ("u must be dense", "sparse")),
    ],
)
def test_bad_input_is_named(backend, call, error, words):
    with dk.use_backend(backend), pytest.raises(error) as caught:
        call(torch.randn(2, 7))
    assert all(word in str(caught.value) for word in words), caught.value


def test_every_output_is_written():
    """Freed memory full of NaN is what the allocator hands out next; none of it may show."""
    u = hostile((64, 100), torch.float32, 0, "normal")
    for m in (0, 7, 100):
        for _ in range(3):
            del_me = [torch.full((64 * 100,), torch.nan) for _ in range(4)]
            del del_me
            both(u, m)


def test_export_with_a_batch_of_any_size():
    class Codes(torch.nn.Module):
        def forward(self, u):
            return dk.batch_top_m(u, 3, positive=True)

    shapes = {"u": {0: torch.export.Dim("batch", min=2, max=1000)}}
    program = torch.export.export(Codes(), (torch.randn(5, 40),), dynamic_shapes=shapes)
    for batch in (2, 17):
        u = torch.randn(batch, 40)
        check(program.module()(u), dk.batch_top_m(u, 3, positive=True))
