"""decode against a dense float64 product, and its derivatives."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk

BACKENDS = ("reference", "cpu")


def problem(batch, n, p, m, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, m, generator=g, dtype=torch.float64)
    indices = torch.rand(batch, p, generator=g).argsort(-1)[:, :m].sort(-1).values
    D = torch.randn(n, p, generator=g, dtype=torch.float64)
    return dk.SparseCode(values.to(dtype), indices, p), D.to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "n", "p", "m"),
    [
        (1, 3, 5, 2),
        (50, 256, 512, 32),
        (7, 33, 100, 0),
        (9, 17, 30, 30),
        (300, 20, 1000, 5),
        (0, 4, 5, 2),
    ],
)
def test_decode_is_the_product(backend, dtype, batch, n, p, m):
    code, D = problem(batch, n, p, m, dtype)
    with dk.use_backend(backend):
        for matrix in (D, D.t().contiguous().t()):
            got = dk.decode(code, matrix)
            dense = code.to_dense().double()
            want = dense @ D.double().t()
            bound = (m + 2) * 2.0**-24 * (dense.abs() @ D.double().abs().t())
            unit = {8: 2.0**-52, 4: 2.0**-23, 2: 2.0**-8 if dtype == torch.bfloat16 else 2.0**-10}
            assert got.dtype == dtype
            assert ((got.double() - want).abs() <= bound + unit[dtype.itemsize] * want.abs()).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "n", "p", "m"), [(3, 4, 6, 2), (5, 2, 3, 3), (40, 3, 4, 2)])
def test_gradcheck(backend, batch, n, p, m):
    code, D = problem(batch, n, p, m, torch.float64)
    values, D = code.values.requires_grad_(), D.requires_grad_()
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda v, D: dk.decode(dk.SparseCode(v, code.indices, p), D), (values, D)
        )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_equal_the_reference_for_any_number_of_threads(threads):
    code, D = problem(700, 64, 300, 12)
    results = []
    for backend, count in (("reference", 1), ("cpu", 1), ("cpu", threads)):
        v, d = code.values.clone().requires_grad_(), D.clone().requires_grad_()
        torch.set_num_threads(count)
        with dk.use_backend(backend):
            dk.decode(dk.SparseCode(v, code.indices, 300), d).square().sum().backward()
        torch.set_num_threads(1)
        results.append((v.grad, d.grad))
    for want, one, many in zip(*results, strict=True):
        assert torch.equal(one, many)
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_positive_activations_than_m(backend):
    """Selected values of zero still have a gradient, and no atom gets one."""
    code, D = problem(2, 5, 9, 4)
    values = torch.zeros_like(code.values).requires_grad_()
    D.requires_grad_()
    with dk.use_backend(backend):
        dk.decode(dk.SparseCode(values, code.indices, 9), D).sum().backward()
    torch.testing.assert_close(values.grad, D.detach().sum(0)[code.indices])
    assert not D.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions(backend):
    code, D = problem(12, 5, 9, 4)
    shaped = dk.SparseCode(code.values.reshape(3, 4, 4), code.indices.reshape(3, 4, 4), 9)
    with dk.use_backend(backend):
        torch.testing.assert_close(dk.decode(shaped, D), dk.decode(code, D).reshape(3, 4, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_without_entries_and_rows_without_codes(backend):
    D = torch.randn(5, 9)
    with dk.use_backend(backend):
        for lead in ((), (2,), (2, 3), (0, 3), (2, 0)):
            for m in (0, 4):
                indices = torch.arange(m).expand(*lead, m)
                got = dk.decode(dk.SparseCode(torch.ones(*lead, m), indices, 9), D)
                torch.testing.assert_close(got, D[:, :m].sum(1).expand(*lead, 5))


@pytest.mark.parametrize("code", [None, torch.ones(3, 4), (torch.ones(2, 3), torch.ones(2, 3))])
def test_only_a_code_is_decoded(code):
    with pytest.raises(TypeError, match=r"code must be a SparseCode, got (NoneType|Tensor|tuple)"):
        dk.decode(code, torch.randn(5, 9))


@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_an_index_out_of_range_is_refused(bad):
    code, D = problem(2, 5, 9, 4)
    indices = code.indices.clone()
    indices[1, 2] = bad
    with pytest.raises(RuntimeError, match=rf"indices.*{bad}"):
        dk.decode(dk.SparseCode(code.values, indices, 9), D)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, D: (c, D.t()), ("D must have shape", "(9, 5)")),
        (lambda c, D: (c, D.double()), ("D must have the dtype", "float64")),
        (
            lambda c, D: (dk.SparseCode(c.values, c.indices.int(), c.size), D),
            ("code.indices must be int64", "int32"),
        ),
        (
            lambda c, D: (dk.SparseCode(c.values, c.indices[:1], c.size), D),
            ("code.indices must have the shape", "(1, 4)"),
        ),
        (
            lambda c, D: (dk.SparseCode(c.values, c.indices, 8), D),
            ("D must have shape [n, p] with p = 8", "(5, 9)"),
        ),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError, match="must") as caught:
        dk.decode(*change(*problem(2, 5, 9, 4)))
    assert all(word in str(caught.value) for word in words), caught.value
