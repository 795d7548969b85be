"""The factored encoders of the Triton floor against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels.triton import encode_top_m, encode_top_m_factored
from python_tests.oracle import same_values
from python_tests.triton.test_masks import watched
from python_tests.triton.test_stage import integers, on

OPS = torch.ops.deepl0
# batch, n, p, m of the stages; nonnegative codes with a bias and steps of their own, or none of it.
CASES = [
    (5, 4, 30, (6, 6, 6), False, False),
    (5, 4, 30, (9, 2, 5), True, True),
    (3, 7, 90, (30, 90), True, False),
    (4, 3, 300, (3, 4), False, True),
    (2, 5, 20, (4,), True, True),
    (3, 4, 12, (0, 3, 0), False, False),
    (0, 4, 12, (3, 3), True, False),
]


def operands(batch: int, n: int, p: int, stages: int, whole: bool, by_columns: bool):
    """x, W, D, bias and step: small integers and powers of two, for which every sum is exact."""
    x, W = integers(batch, n, high=2), integers(p, n, seed=1, high=2)
    D = integers(n, p, seed=2, high=1) * (integers(n, p, seed=4).abs() > 1)
    bias = integers(p, seed=3) - 2.0 if whole else None
    step = 0.5 ** torch.arange(stages) if whole else None
    return x, W, D.t().contiguous().t() if by_columns else D, bias, step


def top_m(args, m, positive, grad) -> tuple[Tensor, ...]:
    """The code and what is saved, and the gradients in x, W, D, bias and step, of the reference in
    float64."""
    leaves = [None if t is None else t.double().requires_grad_() for t in args]
    values, *code = reference.encode_top_m_factored(*leaves, m, positive, True)
    wanted = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(values, wanted, grad, materialize_grads=True))
    grads = [None if t is None else next(found) for t in leaves]
    return (values.detach(), *(t.detach() for t in code)), grads


def close(got: Tensor, want: Tensor | None, tolerance: float = 1e-5) -> None:
    if want is None:
        return
    assert got.shape == want.shape
    error = (got.cpu().double() - want).norm()
    assert error <= tolerance * want.norm().clamp(min=1e-30)


def check_top_m(device: str, case, by_columns: bool, dtype=torch.float32) -> None:
    batch, n, p, m, positive, whole = case
    args = operands(batch, n, p, len(m), whole, by_columns)
    grad = integers(batch, m[-1], seed=9)
    code, want = top_m(args, m, positive, grad.double())
    given = [None if t is None else t.to(dtype) for t in args[:4]]
    given = on(device, *given, args[4])
    assert args[2].stride() == given[2].stride()
    got = OPS.encode_top_m_factored_saving(*given, list(m), positive)
    assert got[0].dtype == dtype
    assert torch.equal(got[0].cpu(), code[0].to(dtype))
    for ours, theirs in zip(got[1:], code[1:], strict=True):
        assert torch.equal(ours.cpu().double(), theirs.to(ours.dtype).double())
    short = OPS.encode_top_m_factored(*given, list(m), positive)
    assert all(torch.equal(a, b) for a, b in zip(short, got[:2], strict=True))
    x, W, D, _, step = given
    rest = (got[0] if positive else None, *got[1:], x, W, D, step, list(m))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    whole_grads = OPS.encode_top_m_factored_backward(grad.to(device, dtype), *rest, 31)
    for ours, theirs in zip(whole_grads, want, strict=True):
        close(ours, theirs, tolerance)
    assert whole_grads[2].stride() == D.stride()
    for mask in () if by_columns else (4, 10, 16, 21):
        some = OPS.encode_top_m_factored_backward(grad.to(device, dtype), *rest, mask)
        for i, (ours, theirs) in enumerate(zip(some, whole_grads, strict=True)):
            assert torch.equal(ours, theirs) if mask >> i & 1 else ours.shape == (0,)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_m_sparse(engine, device, case, by_columns):
    check_top_m(device, case, by_columns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_m_sparse_of_half_types(engine, device, dtype):
    check_top_m(device, (5, 4, 30, (9, 2, 5), True, True), False, dtype)


def test_blocks_of_rows_and_infinite_signals(engine, device, monkeypatch):
    x, W, D, bias, step = operands(70, 4, 30, 2, True, False)
    x[2, 1], x[4, 0] = torch.nan, torch.inf
    given = on(device, x, W, D, bias, step)
    whole = OPS.encode_top_m_factored_saving(*given, [5, 6], True)
    monkeypatch.setattr(encode_top_m, "BLOCK", 1)  # 64 rows
    parts = OPS.encode_top_m_factored_saving(*given, [5, 6], True)
    want = reference.encode_top_m_factored(x, W, D, bias, step, [5, 6], True, True)
    for a, b, c in zip(parts, whole, want, strict=True):
        assert same_values(a, b) if a.is_floating_point() else torch.equal(a, b)
        assert same_values(a.cpu(), c) if a.is_floating_point() else torch.equal(a.cpu(), c)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(
    ("shape", "kind", "whole", "theta_shape"),
    [((5, 4, 30, 3), "helu", False, "vector"), ((5, 4, 30, 3), "positive_helu", True, "per_stage"),
     ((4, 3, 7, 1), "positive_ste", True, "scalar"), ((70, 4, 33, 2), "ste_theta", True, "vector"),
     ((0, 4, 7, 2), "hard", False, "scalar")],
    ids=str,
)  # fmt: skip
def test_l0(engine, device, shape, kind, whole, theta_shape, by_columns):
    batch, n, p, K = shape
    x, W, D, bias, step = operands(batch, n, p, K, whole, by_columns)
    theta = integers(K, p, high=9).abs() + 4.0
    theta = {"scalar": theta[0, 0], "vector": theta[0], "per_stage": theta}[theta_shape]
    args = x, W, D, bias, step, theta
    leaves = [None if t is None else t.double().requires_grad_() for t in args]
    z, saved = reference.encode_l0_factored(*leaves, K, 0.5, kind, True)
    given = on(device, *args)
    got, got_saved = OPS.encode_l0_factored_saving(*given, K, 0.5, kind)
    assert torch.equal(got_saved.cpu().double(), saved)
    assert torch.equal(got.cpu().double(), z)
    assert torch.equal(OPS.encode_l0_factored(*given, K, 0.5, kind), got)
    grad = integers(batch, p, seed=9)
    wanted = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(z, wanted, grad.double(), materialize_grads=True))
    gx, gW, gD, gbias, gstep, gtheta = (None if t is None else next(found) for t in leaves)
    want = gx, gW, gD, gtheta, gbias, gstep
    rest = (grad.to(device), got_saved, *given[:3], *given[4:], 0.5, kind)
    grads = OPS.encode_l0_factored_backward(*rest, 63)
    for ours, theirs in zip(grads, want, strict=True):
        close(ours, theirs)
    assert grads[2].stride() == given[2].stride()
    for mask in (1, 2, 4, 8, 16, 32, 12):
        for i, ours in enumerate(OPS.encode_l0_factored_backward(*rest, mask)):
            assert torch.equal(ours, grads[i]) if mask >> i & 1 else ours.shape == (0,)


def test_l0_of_half_types(engine, device):
    x, W, D, bias, step = operands(6, 4, 30, 2, True, False)
    theta = torch.tensor(5.0)
    want = reference.encode_l0_factored(x, W, D, bias, step, theta, 2, 0.0, "hard", True)
    given = [t.to(torch.float16) for t in (x, W, D, bias)]
    z, saved = OPS.encode_l0_factored_saving(*on(device, *given, step, theta), 2, 0.0, "hard")
    assert torch.equal(saved.cpu(), want[1])
    assert z.dtype == torch.float16
    assert torch.equal(z.cpu(), want[0].half())


def test_through_the_public_functions(engine, device):
    found = []
    for backend in (None, "reference"):
        x, W, D, bias, step = operands(5, 4, 30, 2, True, True)
        leaves = [t.to(device).requires_grad_() for t in (x, W, D, bias, step)]
        more = dict(D=leaves[2], bias=leaves[3], step=leaves[4], positive=True)
        with dk.use_backend(backend):
            code = dk.encode_top_m(*leaves[:2], None, (9, 6), **more)
            z = dk.encode_l0(*leaves[:2], None, 3.0, sigma=0.5, **more)
            loss = code.values.square().sum() + z.square().sum()
            found.append((code.indices, *torch.autograd.grad(loss, leaves)))
    for ours, want in zip(*found, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-4)


def test_what_is_held_of_b_p():
    """A block of rows of the products, and no [B, p] and no [p, p]."""
    batch, n, p, m = 65536, 64, 16384, [32, 16]
    meta = dict(dtype=torch.float32, device="meta")
    x, W, D = (torch.empty(s, **meta) for s in ((batch, n), (p, n), (n, p)))
    forward = encode_top_m_factored.encode_top_m_factored
    watch, _, (values, *code) = watched(forward, x, W, D, None, None, m, False, True)
    assert watch.largest == 4 * encode_top_m.BLOCK
    backward = encode_top_m_factored.encode_top_m_factored_backward
    watch, *_ = watched(backward, values, None, *code, x, W, D, None, m, 31)
    # The entries' numbers, and rows of n of whole chunks of a unit's entries.
    assert watch.largest <= max(8 * batch * 32, 4 * batch * n)
