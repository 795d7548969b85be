"""top_m, keep_top_m and unpool against an oracle of their own, and their derivatives."""

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


def expected_indices(u: torch.Tensor, m: int) -> torch.Tensor:
    lines = u.reshape(-1, u.shape[-1]).tolist() if u.numel() else []
    indices = torch.tensor([top_m_by_sorting(line, m) for line in lines], dtype=torch.int64)
    return indices.reshape(*u.shape[:-1], m)


@pytest.mark.parametrize("backend", BACKENDS)
@given(u=rows(), data=st.data())
def test_selection_is_the_contract(backend, u, data):
    p = u.shape[-1]
    m = data.draw(st.one_of(st.sampled_from((0, p)), st.integers(0, p)))
    before = u.clone()
    with dk.use_backend(backend):
        values, indices = dk.top_m(u, m)
        kept = dk.keep_top_m(u, m)
        dense = dk.unpool(values, indices, p)
    assert torch.equal(indices, expected_indices(u, m))
    assert indices.dtype == torch.int64
    bits = as_bits(before).gather(-1, indices)
    want = torch.zeros_like(as_bits(before)).scatter(-1, indices, bits)
    assert same_bits(u, before)
    assert same_values(values, bits.view(u.dtype))
    assert same_values(kept, want.view(u.dtype))
    if backend == "cpu":
        assert torch.equal(as_bits(values), bits)
        assert torch.equal(as_bits(kept), want)
        assert torch.equal(as_bits(dense), want)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1, 2, 15, 16, 17, 63, 512, 1000, 4096, 20000, 131072])
def test_native_equals_reference_on_long_rows(p, dtype, style):
    u = hostile((3 if p < 5000 else 1, p), dtype, p, style)
    for m in {0, 1, min(32, p), p // 2, p - 1, p}:
        values, indices = dk.top_m(u, m)
        kept = dk.keep_top_m(u, m)
        with dk.use_backend("reference"):
            want_values, want_indices = dk.top_m(u, m)
            want_kept = dk.keep_top_m(u, m)
        assert torch.equal(indices, want_indices), (p, dtype, style, m)
        assert same_values(values, want_values)
        assert same_values(kept, want_kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_written(dtype, monkeypatch):
    """Freed memory full of NaN is what the allocator hands out next; none of it may show."""
    u = hostile((64, 100), dtype, 0, "normal")
    for m in (0, 7, 100):
        for _ in range(3):
            del_me = [torch.full((64, 100), float("nan"), dtype=dtype) for _ in range(4)]
            del del_me
            values, indices = dk.top_m(u, m)
            kept = dk.keep_top_m(u, m)
            assert not kept.isnan().any()
            assert (kept != 0).sum() == 64 * m
            assert same_bits(dk.unpool(values, indices, 100), kept)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(threads):
    u = hostile((3000, 129), torch.float32, 1, "few_special")
    want = dk.keep_top_m(u, 9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert same_bits(dk.keep_top_m(u, 9), want)
        assert same_bits(dk.unpool(*dk.top_m(u, 9), 129), want)
    finally:
        torch.set_num_threads(before)


def test_views_that_overlap_and_misaligned_memory():
    base = torch.randn(4, 50)
    expanded = base[:, None].expand(4, 3, 50)
    assert torch.equal(dk.keep_top_m(expanded, 5), dk.keep_top_m(expanded.contiguous(), 5))
    storage = torch.randn(1 + 4 * 50).to(torch.float16)
    shifted = storage[1:].view(4, 50)  # two bytes off any vector alignment
    assert torch.equal(dk.keep_top_m(shifted, 5), dk.keep_top_m(shifted.clone(), 5))


def test_offsets_beyond_2_to_the_31():
    """More than 2^31 elements of bfloat16 (4 GiB), of which the last row must be right."""
    p, size = 1 << 16, (1 << 31) + (1 << 17)
    u = torch.zeros(size // p, p, dtype=torch.bfloat16)
    u[-1, -3:] = torch.tensor([1.0, -2.0, 3.0], dtype=torch.bfloat16)
    values, indices = dk.top_m(u, 2)
    assert indices[-1].tolist() == [p - 2, p - 1]
    assert values[-1].tolist() == [-2.0, 3.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    u = torch.randn(3, 4, 11, dtype=torch.float64, requires_grad=True)
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(lambda u: dk.top_m(u, 4)[0], (u,))
        assert torch.autograd.gradgradcheck(lambda u: dk.top_m(u, 4)[0], (u,))
        assert torch.autograd.gradcheck(lambda u: dk.keep_top_m(u, 4), (u,))
        assert torch.autograd.gradgradcheck(lambda u: dk.keep_top_m(u, 4), (u,))
        values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        indices = torch.stack([torch.randperm(9)[:4] for _ in range(3)])
        assert torch.autograd.gradcheck(lambda v: dk.unpool(v, indices, 9), (values,))
        assert torch.autograd.gradgradcheck(lambda v: dk.unpool(v, indices, 9), (values,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_goes_to_the_selected_only_even_where_they_are_zero(backend):
    u = torch.tensor([[0.0, -0.0, 0.0, 0.0, 2.0]], requires_grad=True)
    with dk.use_backend(backend):
        dk.keep_top_m(u, 3).sum().backward()
    assert u.grad.tolist() == [[1.0, 1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda u: dk.top_m(u, 8), ValueError, ("m must be", "8")),
        (lambda u: dk.top_m(u, -1), ValueError, ("m must be", "-1")),
        (lambda u: dk.keep_top_m(u, 8), ValueError, ("m must be", "8")),
        (lambda u: dk.top_m(u, 2.5), TypeError, ("m must be an integer", "2.5")),
        (lambda u: dk.top_m(u, True), TypeError, ("m must be an integer", "True")),
        (lambda u: dk.top_m(u.long(), 2), ValueError, ("u must be", "int64")),
        (lambda u: dk.top_m(u.to(torch.complex64), 2), ValueError, ("u must be", "complex64")),
        (lambda u: dk.top_m(u[0, 0], 0), ValueError, ("u must have", "()")),
        (lambda u: dk.top_m(u.tolist(), 2), TypeError, ("u must be a tensor", "list")),
        (
            lambda u: dk.top_m(torch.nested.nested_tensor([u, u[:1]]), 2),
            ValueError,
            ("u must be dense", "nested"),
        ),
        (
            lambda u: dk.unpool(u, u.long(), 2**70),
            ValueError,
            ("size must be >= 7 and <= 2**63", str(2**70)),
        ),
        (lambda u: dk.top_m(u.to_sparse(), 2), ValueError, ("u must be dense", "sparse")),
        (lambda u: dk.unpool(u, u, 9), ValueError, ("indices must be int64", "float32")),
        (lambda u: dk.unpool(u, u.long()[:, :3], 9), ValueError, ("indices must have", "(2, 3)")),
        (lambda u: dk.unpool(u, u.long(), 6), ValueError, ("size must be >= 7", "6")),
    ],
)
def test_bad_input_is_named(backend, call, error, words):
    with dk.use_backend(backend), pytest.raises(error) as caught:
        call(torch.randn(2, 7))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("bad", [-1, 9, 2**40, -(2**62)])
def test_unpool_refuses_an_index_out_of_range(bad):
    indices = torch.tensor([[0, 1, 2], [3, bad, 5]])
    with pytest.raises(RuntimeError, match=rf"indices.*{bad}"):
        dk.unpool(torch.randn(2, 3), indices, 9)


def test_unpool_refuses_an_index_that_occurs_twice():
    with pytest.raises(RuntimeError, match=r"indices.*5.*twice"):
        dk.unpool(torch.randn(1, 3), torch.tensor([[5, 1, 5]]), 9)


def test_numpy_integers_are_integers():
    numpy = pytest.importorskip("numpy")
    u = torch.randn(2, 7)
    assert torch.equal(dk.top_m(u, numpy.int32(3))[1], dk.top_m(u, 3)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positive", [False, True])
def test_subnormal_numbers_count_whatever_the_mode(positive, dtype):
    """Selection compares bits: flushing to zero, which one may ask torch for, changes none."""
    tiny = torch.finfo(dtype).smallest_normal
    u = torch.tensor([[0.0, tiny / 2, -tiny / 4, tiny / 4, -0.0, -tiny / 2] * 5], dtype=dtype)
    want = dk.reference.top_m(u, 9, positive), dk.reference.keep_top_m(u, 9, positive)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        values, indices = dk.top_m(u, 9, positive=positive)
        kept = dk.keep_top_m(u, 9, positive=positive)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(indices, want[0][1])
    assert torch.equal(values, want[0][0])
    assert torch.equal(kept, want[1][0])
