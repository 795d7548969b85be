"""The Triton kernels of decode against the reference."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels._matrices import gradient_of_matrix
from python_tests.triton.conftest import CHECKS, EVERY

# batch, n, p, m: nothing; one of each; ragged; a tile of columns and one more; m = p; m = 0.
SHAPES = [
    (0, 4, 5, 2),
    (1, 1, 1, 1),
    (37, 33, 50, 7),
    (5, 257, 20, 20),
    (3, 65, 40, 1),
    (4, 6, 9, 0),
]
LAYOUTS = {
    "row_major": lambda D: D.contiguous(),
    "atoms": lambda D: D.t().contiguous().t(),
    "strided": lambda D: D.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3],
}


def problem(batch, n, p, m, dtype=torch.float32, integer=True):
    """Small integers: every order of summation gives the same float32."""
    g = torch.Generator().manual_seed(batch + n + m)

    def draw(*shape):
        if integer:
            return torch.randint(-4, 5, shape, generator=g).to(dtype)
        return torch.randn(shape, generator=g).to(dtype)

    indices = torch.rand(batch, p, generator=g).argsort(-1)[:, :m].sort(-1).values
    return draw(batch, m), indices, draw(n, p), draw(batch, n)


def dense_gradients(grad, values, indices, D):
    """In float64: values and D."""
    code = reference.unpool(values.double(), indices, D.shape[1])
    return (grad.double() @ D.double()).gather(1, indices), grad.double().t() @ code


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_exact_on_integers(engine, device, shape, layout):
    values, indices, D, grad = problem(*shape)
    args = [t.to(device) for t in (values, indices, LAYOUTS[layout](D))]
    out = torch.ops.deepl0.decode(*args)
    assert torch.equal(out.cpu(), reference.decode(values, indices, D))

    grads = torch.ops.deepl0.decode_backward(grad.to(device), *args, 3)
    for ours, want in zip(grads, dense_gradients(grad, values, indices, D), strict=True):
        assert torch.equal(ours.cpu().double(), want)
    assert grads[1].stride() == gradient_of_matrix(args[2]).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounds_once(engine, device, dtype):
    values, indices, D, grad = problem(19, 70, 45, 9, dtype, integer=False)
    args = [t.to(device) for t in (values, indices, D)]
    out = torch.ops.deepl0.decode(*args).cpu()
    code = reference.unpool(values.double(), indices, 45)
    grads = torch.ops.deepl0.decode_backward(grad.to(device), *args, 3)
    want_values, want_D = dense_gradients(grad, values, indices, D)
    # float32 accumulation of at most 70 terms, and one rounding.
    ulp = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    for ours, want, magnitude in (
        (out, code @ D.double().t(), code.abs() @ D.double().abs().t()),
        (grads[0].cpu(), want_values, dense_gradients(grad.abs(), values, indices, D.abs())[0]),
        (grads[1].cpu(), want_D, dense_gradients(grad.abs(), values.abs(), indices, D)[1]),
    ):
        assert ours.dtype == dtype
        bound = 70 * 2.0**-24 * magnitude + ulp * want.abs()
        assert ((ours.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("batch", [255, 256, 1100])
def test_skewed_usage(engine, device, batch):
    """An atom that every row uses, one that a row in two uses: whole chunks, heads and tails."""
    n, p = 5, 6
    indices = torch.full((batch, 2), 3)
    indices[:, 1] = 4 + torch.arange(batch) % 2
    values = torch.randint(-4, 5, (batch, 2)).float()
    D, grad = torch.randint(-4, 5, (n, p)).float(), torch.randint(-4, 5, (batch, n)).float()
    args = [t.to(device) for t in (grad, values, indices, D)]
    grads = torch.ops.deepl0.decode_backward(*args, 3)
    for ours, want in zip(grads, dense_gradients(grad, values, indices, D), strict=True):
        assert torch.equal(ours.cpu().double(), want)


def test_unused_atoms_are_not_read_and_have_gradient_zero(engine, device):
    values, indices, D, grad = problem(6, 8, 12, 3)
    indices = indices.clamp(max=10)
    indices[:, 0] = 0
    poisoned = D.clone()
    poisoned[:, 11] = float("nan")
    args = [t.to(device) for t in (values, indices, poisoned)]
    assert torch.equal(
        torch.ops.deepl0.decode(*args).cpu(),
        torch.einsum("bj,nbj->bn", values, D[:, indices]),
    )
    grad_D = torch.ops.deepl0.decode_backward(grad.to(device), *args, 3)[1]
    assert torch.equal(grad_D[:, 11].cpu(), torch.zeros(8))


@pytest.mark.parametrize("bad", [-1, 12, 2**40])
def test_an_index_out_of_range_is_not_followed(engine, device, bad):
    values, indices, D, grad = problem(6, 8, 12, 3)
    indices[2, 1] = bad
    args = [t.to(device) for t in (values, indices, D)]
    out = torch.ops.deepl0.decode(*args).cpu()
    assert out[2].isnan().all()
    assert not out[[0, 1, 3, 4, 5]].isnan().any()
    grad_values, grad_D = torch.ops.deepl0.decode_backward(grad.to(device), *args, 3)
    assert grad_values.cpu().isnan().nonzero().tolist() == [[2, 1]]
    without = torch.arange(18).view(6, 3) != 7
    want = torch.zeros(12, 8).index_add_(
        0, indices[without], (values[..., None] * grad[:, None])[without]
    )
    assert torch.equal(grad_D.cpu(), want.t())


def test_nan_inf_and_zero_values(engine, device):
    values, indices, D, _ = problem(4, 8, 12, 3)
    values[0, 1], values[1, 0], values[2, 2] = float("nan"), float("inf"), -0.0
    D = D.abs() + 1
    out = torch.ops.deepl0.decode(*(t.to(device) for t in (values, indices, D))).cpu()
    want = reference.decode(values, indices, D)
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)


def test_deterministic_and_differentiable_through_the_public_operator(engine, device):
    values, indices, D, _ = problem(3 * 7, 20, 30, 5, integer=False)
    runs = []
    for backend in ("reference", None, None):
        v = values.view(3, 7, 5).to(device).requires_grad_()
        d = D.to(device).requires_grad_()
        with dk.use_backend(backend):
            out = dk.decode(dk.SparseCode(v, indices.view(3, 7, 5).to(device), 30), d)
            runs.append((out, *torch.autograd.grad(out.square().sum(), (v, d))))
    for want, first, second in zip(*runs, strict=True):
        torch.testing.assert_close(first, want)
        assert torch.equal(first, second)


def test_opcheck(engine, device):
    values, indices, D, grad = problem(5, 6, 9, 3, integer=False)
    for matrix in (D, D.t().contiguous().t()):
        v, i, d = values.to(device), indices.to(device), matrix.to(device)
        args = (v.requires_grad_(), i, d.detach().requires_grad_())
        torch.library.opcheck(torch.ops.deepl0.decode.default, args, test_utils=CHECKS)
        torch.library.opcheck(
            torch.ops.deepl0.decode_backward.default,
            (grad.to(device), *(t.detach() for t in args), 3),
            test_utils=CHECKS,
        )
