"""The M-sparse encoder of the Triton floor against the reference, forward and backward, by either
way: gathers and lists, or products.

Exact comparisons use inputs for which every order of summation gives the same float32: small
integers, or products with a single 1.
"""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from deepl0_kernels._matrices import gradient_of_matrix
from deepl0_kernels.triton import encode_top_m as module
from deepl0_kernels.triton import table, tuned
from python_tests.ops.test_encode import assert_top_m_stage, pre_activation, problem
from python_tests.oracle import hostile, same_values
from python_tests.triton.conftest import EVERY, crossed
from python_tests.triton.test_encode import (
    SHAPES,
    assert_close_in_norm,
    matrices_for,
    operands,
)
from python_tests.triton.test_masks import watched
from python_tests.triton.test_stage import bias_of, integers, on

OPS = torch.ops.deepl0
LAYOUTS = {
    "row_major": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}


@pytest.fixture(params=["sparse", "dense"])
def way(request, monkeypatch) -> str:
    """Gathers and lists, or products, for every size."""
    monkeypatch.setattr(module, "gathers_pay", lambda *_: request.param == "sparse")
    monkeypatch.setattr(module, "lists_pay", lambda *_: request.param == "sparse")
    return request.param


@pytest.fixture
def short_rows(monkeypatch):
    """As if a program held rows of no more than 64 entries."""
    short = ((1 << 62, tuned.Config(1, 64, warps=1)),)
    for kernel in ("top_m", "gather_top_m"):
        monkeypatch.setitem(table.TABLE, kernel, short)


def assert_equal(got, want) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.cpu(), theirs)


def check(device, given, m, K, positive) -> None:
    want = reference.encode_top_m(*given, m, K, positive, True)
    given = on(device, *given)
    assert_equal(OPS.encode_top_m_saving(*given, m, K, positive), want)
    assert_equal(OPS.encode_top_m(*given, m, K, positive), want[:2])


@pytest.mark.parametrize(("per_stage", "positive"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_exact_on_integers(engine, device, way, shape, per_stage, positive):
    batch, n, p, m, K = shape
    x, W, S = operands(batch, n, p, matrices_for(K, per_stage))
    check(device, (x, W, S, bias_of(p) if positive else None), m, K, positive)


@pytest.mark.parametrize("m", [5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_longer_than_a_program_holds(engine, device, way, short_rows, dtype, m):
    """By a tournament of segments, or with many entries by digits."""
    given = *operands(2, 7, 210, dtype=dtype), bias_of(210, dtype)
    want = reference.encode_top_m(*given, m, 2, False, True)
    assert_equal(OPS.encode_top_m_saving(*on(device, *given), m, 2, False), want)


def test_blocks_of_rows(engine, device, way, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)  # 64 rows
    given = *operands(70, 5, 30, 2, torch.float16), bias_of(30, torch.float16)
    want = reference.encode_top_m(*given, 4, 3, True, True)
    assert_equal(OPS.encode_top_m_saving(*on(device, *given), 4, 3, True), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_after_every_stage(engine, device, way, dtype):
    """z needs more bits than the half type has, and the supports show that it was decided with
    them; what goes on is rounded: K stages are single ones."""
    x, W, S = (t.to(dtype) for t in operands(9, 40, 72))
    x, bias = integers(9, 40, high=99).to(dtype), bias_of(72, dtype)
    given = on(device, x, W, S, bias)
    for positive in (False, True):
        want = reference.encode_top_m(x, W, S, bias, 11, 3, positive, True)
        got = OPS.encode_top_m_saving(*given, 11, 3, positive)
        assert_equal(got, want)
        assert_equal(OPS.encode_top_m(*given, 11, 3, positive), want[:2])
        assert got[2].dtype == torch.float32
        z = torch.zeros(9, 72, dtype=dtype, device=device)
        for _ in range(3):
            z = OPS.top_m_stage(*given[:2], z, *given[2:], 11, positive)[0]
        assert torch.equal(reference.unpool(*got[:2], 72), z)
        wide = OPS.encode_top_m(*(t.float() for t in given), 11, 3, positive)
        assert not torch.equal(wide[0].to(dtype), got[0])


def test_random_values_follow_from_their_own_stage_before(engine, device, way):
    """A swap is excused only between entries within the rounding bound of each other."""
    m, K = 12, 3
    x, W, S, _ = problem(30, 25, 100, seed=4)
    code = [t.cpu() for t in OPS.encode_top_m_saving(*on(device, x, W, S), None, m, K, False)]
    z, swaps = torch.zeros(30, 100), 0
    for k in range(K):
        values, indices = (code[2][k], code[3][k]) if k + 1 < K else code[:2]
        u, bound = pre_activation(x, W, z, S if k else torch.zeros(100, 100))
        swaps += assert_top_m_stage(u, bound, dk.SparseCode(values, indices, 100), m)
        z = reference.unpool(values, indices, 100)
    assert swaps <= 1


@pytest.mark.parametrize(
    ("style", "m"),
    crossed(["ties", "special", "few_special", "denormal", "equal", "close"], [1, 10, 40]),
)
@pytest.mark.parametrize("positive", [False, True])
def test_hostile_rows(engine, device, short_rows, style, m, positive):
    """Pre-activations u [1, p], which x = [[1]] and W = u' have exactly."""
    u = hostile((1, 210), torch.float32, m, style)
    want_values, want_indices = reference.top_m(u, m, positive)
    given = on(device, torch.ones(1, 1), u.t().contiguous())
    values, indices = OPS.encode_top_m(*given, None, None, m, 1, positive)
    assert torch.equal(indices.cpu(), want_indices)
    assert same_values(values.cpu() + 0.0, want_values + 0.0)  # the product has no -0.0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [True, False])
def test_layouts(engine, device, way, layout, tied):
    x, W, S = operands(9, 8, 50, None if tied else 2)
    grad = integers(9, 4)
    given = on(device, *(LAYOUTS[layout](t) for t in (x, W, S)))
    want = reference.encode_top_m(x, W, S, None, 4, 3, False, True)
    got = OPS.encode_top_m_saving(*given, None, 4, 3, False)
    assert_equal(got, want)
    leaves = [t.double().requires_grad_() for t in (x, W, S)]
    values = reference.encode_top_m(*leaves, None, 4, 3)[0]
    wanted = torch.autograd.grad(values, leaves, grad.double())
    grads = OPS.encode_top_m_backward(grad.to(device), None, *got[1:], *given, 15)
    for ours, theirs in zip(grads, wanted, strict=False):
        assert torch.equal(ours.cpu().double(), theirs)
    assert grads[1].is_contiguous()
    assert grads[2].stride() == gradient_of_matrix(given[2]).stride()


@pytest.mark.parametrize(("per_stage", "positive"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_at_equal_supports(engine, device, way, shape, per_stage, positive):
    batch, n, p, m, K = shape
    inputs = problem(batch, n, p, 5, torch.float64, matrices_for(K, per_stage))[:3]
    bias = bias_of(p, torch.float64)
    if positive:  # fewer than m units have a chance
        bias[m // 2 :] -= 20.0
    leaves = [t.requires_grad_() for t in (*inputs, bias)]
    values, *code = reference.encode_top_m(*leaves, m, K, positive, True)
    assert (values == 0).any() == (positive and values.numel() > 0)
    grad = torch.randn(values.shape, dtype=torch.float64)
    want = torch.autograd.grad(values, leaves, grad, materialize_grads=True)
    code[1] = code[1].detach().float()
    given = values.detach().float() if positive else None
    args = (grad.float(), given, *code, *(t.detach().float() for t in inputs))
    assert_close_in_norm(OPS.encode_top_m_backward(*on(device, *args), 15), want, 1e-5)


def test_half_gradients_are_computed_in_float32(engine, device, way):
    x, W, S = operands(6, 8, 30, dtype=torch.bfloat16)
    leaves = [t.float().requires_grad_() for t in (x, W, S, bias_of(30))]
    values, *code = reference.encode_top_m(*leaves, 5, 2, False, True)
    grad = integers(6, 5)
    want = torch.autograd.grad(values, leaves, grad)
    args = (grad.bfloat16(), None, code[0], code[1].detach(), code[2], x, W, S)
    got = OPS.encode_top_m_backward(*on(device, *args), 15)
    assert_equal(got, [t.bfloat16() for t in want])


def test_skewed_usage(engine, device, monkeypatch):
    """A unit that every row uses in every stage: whole chunks of dW and of dS."""
    monkeypatch.setitem(table.TABLE, "outer", ((1 << 62, tuned.Config(8, 128, 32)),))
    x, W, S = operands(140, 4, 70)
    x[:, 0] = 1.0
    W[17, 0], W[69, 0] = 500.0, -600.0
    grad = integers(140, 3)
    for layout in ("row_major", "transposed"):
        leaves = [t.double().requires_grad_() for t in (x, W, S, torch.zeros(70))]
        values, *code = reference.encode_top_m(*leaves, 3, 2, False, True)
        assert (code[2] == 17).any(-1).all()
        want = torch.autograd.grad(values, leaves, grad.double())
        code[1] = code[1].detach().float()
        args = on(device, grad, None, *code, x, W, LAYOUTS[layout](S))
        for ours, theirs in zip(OPS.encode_top_m_backward(*args, 15), want, strict=True):
            assert torch.equal(ours.cpu().double(), theirs)


@pytest.mark.parametrize(("batch", "m"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("stages", [1, 3])
def test_nothing_to_do(engine, device, way, batch, m, stages):
    x, W, S = on(device, *operands(batch, 3, 65))
    got = OPS.encode_top_m_saving(x, W, S, None, m, stages, False)
    assert got[0].shape == got[1].shape == (batch, m)
    assert got[2].shape == got[3].shape == (stages - 1, batch, m)
    for mask in (15, 14):
        grads = OPS.encode_top_m_backward(got[0], got[0], *got[1:], x, W, S, mask)
        assert grads[0].shape == (x.shape if mask == 15 else (0,))
        for grad, like in zip(grads[1:], (W, S, W[:, 0]), strict=True):
            assert grad.shape == like.shape
            assert not grad.any()


def test_which_way():
    """By size, dtype and what is allowed of products."""
    half, single = torch.bfloat16, torch.float32
    assert module.gathers_pay(128, 32, single)
    assert not module.gathers_pay(127, 32, single)
    assert module.gathers_pay(2048, 32, half)
    assert not module.gathers_pay(2047, 32, half)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert not module.gathers_pay(2047, 32, single)
    finally:
        torch.set_float32_matmul_precision(before)
    assert module.lists_pay(512, 32)
    assert not module.lists_pay(511, 32)


@pytest.mark.parametrize("stages", [1, 3])
def test_a_block_of_b_p_is_held(stages):
    """On meta tensors, where nothing runs but every allocation is asked for."""
    batch, n, p, m = 65536, 64, 16384, 32
    meta = dict(dtype=torch.float32, device="meta")
    x, W = torch.empty(batch, n, **meta), torch.empty(p, n, **meta)
    S = torch.empty(p, p, **meta) if stages > 1 else None
    matrix = 4 * p * p if stages > 1 else 0  # a transposed copy of S, its gradient
    forward, _, code = watched(module.encode_top_m, x, W, S, None, m, stages, False, True)
    assert forward.largest == max(matrix, 4 * module.BLOCK)
    args = (code[0], code[0], *code[1:], x, W, S, 15)
    backward, *_ = watched(module.encode_top_m_backward, *args)
    partial_rows = 4 * p * (stages - 1) * batch * m // 4096
    codes = 8 * stages * batch * m
    assert backward.largest <= max(matrix, codes, partial_rows, 4 * batch * n)
