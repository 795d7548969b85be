"""The Triton kernels of one stage against the reference."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from python_tests.ops.test_encode import pre_activation, problem
from python_tests.oracle import as_bits, same_values
from python_tests.triton.conftest import EVERY

# B, n, p, m: ragged, a single column, a tile exactly, more rows than a tile, empty.
SHAPES = [(5, 7, 33, 10), (1, 1, 1, 1), (40, 40, 128, 128), (70, 7, 17, 3), (3, 40, 200, 0),
          (0, 7, 33, 10), (2, 7, 520, 40)]  # fmt: skip


def integers(*shape, high=3, seed=0):
    """Small integers: every order of summation gives the same float32."""
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(-high, high + 1, shape, generator=g).float()


def operands(batch, n, p, dtype=torch.float32):
    x, W = integers(batch, n), integers(p, n, seed=1)
    z, S = integers(batch, p, seed=2), integers(p, p, high=1, seed=3)
    return tuple(t.to(dtype) for t in (x, W, z, S))


def on(device, *tensors):
    return tuple(None if t is None else t.to(device) for t in tensors)


def bias_of(p, dtype=torch.float32):
    return integers(p, seed=5).to(dtype)


@pytest.mark.parametrize(
    ("scalar", "sigma", "kind"),
    [(True, 0.0, "helu"), (False, 0.5, "helu"), (True, 0.5, "positive_helu"),
     (False, 0.0, "positive_hard")],
)  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_threshold_stage_is_exact_on_integers(engine, device, shape, scalar, sigma, kind):
    batch, n, p, _ = shape
    tensors = *operands(batch, n, p), bias_of(p) if kind != "helu" else None
    theta = integers(p, high=9).abs() + 4.0
    theta = theta[0] if scalar else theta
    want = reference.threshold_stage(*tensors, theta, sigma, kind, True)
    got = torch.ops.deepl0.threshold_stage_saving(*on(device, *tensors, theta), sigma, kind)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    assert batch * p < 40 or 0 < want[0].count_nonzero() < batch * p


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_top_m_stage_is_exact_on_integers(engine, device, shape, positive):
    batch, n, p, m = shape
    tensors = *operands(batch, n, p), bias_of(p) if positive else None  # many ties
    want = reference.top_m_stage(*tensors, m, positive)
    got = torch.ops.deepl0.top_m_stage(*on(device, *tensors), m, positive)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


def test_nan_and_inf_in_a_signal_stay_in_its_row(engine, device):
    x, W, z, S = operands(4, 7, 33)
    x[1, 3], x[2, 0], z[3, 5] = torch.nan, torch.inf, -torch.inf
    theta = torch.tensor(3.0)
    want, want_u = reference.threshold_stage(x, W, z, S, None, theta, 0.0, "helu", True)
    args = (*on(device, x, W, z, S, None, theta), 0.0, "helu")
    got, u = torch.ops.deepl0.threshold_stage_saving(*args)
    assert same_values(u.cpu(), want_u)
    assert same_values(got.cpu(), want)
    for positive in (False, True):
        want, want_mask = reference.top_m_stage(x, W, z, S, None, 10, positive)
        got, mask = torch.ops.deepl0.top_m_stage(*on(device, x, W, z, S), None, 10, positive)
        assert torch.equal(mask.cpu(), want_mask)
        assert same_values(got.cpu(), want)


def test_operands_may_be_views(engine, device):
    x, W, z, S = operands(6, 8, 20)
    theta = torch.tensor(5.0)
    views = (
        torch.stack([x, x + 9.0], dim=2)[:, :, 0],
        W.t().contiguous().t(),
        torch.cat([z, z + 9.0], dim=1)[:, :20],
        S.t().contiguous().t(),
    )
    assert not any(t.is_contiguous() for t in views)
    bias = torch.stack([bias_of(20), bias_of(20) + 9.0], dim=1)[:, 0]
    views, bias, theta = on(device, *views), *on(device, bias, theta)
    got = torch.ops.deepl0.threshold_stage(*views, bias, theta, 0.0, "helu").cpu()
    want = reference.threshold_stage(x, W, z, S, bias.cpu(), theta.cpu(), 0.0, "helu")[0]
    assert torch.equal(got, want)
    got = torch.ops.deepl0.top_m_stage(*views, bias, 7, False)
    assert torch.equal(got[0].cpu(), reference.top_m_stage(x, W, z, S, bias.cpu(), 7)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
def test_half_types_accumulate_in_float32(engine, device, dtype):
    tensors = *operands(9, 40, 72, dtype), bias_of(72, dtype)
    theta = torch.tensor(20.0)
    want, want_u = reference.threshold_stage(*tensors, theta, 0.0, "helu", True)
    got, u = torch.ops.deepl0.threshold_stage_saving(*on(device, *tensors, theta), 0.0, "helu")
    assert torch.equal(u.cpu(), want_u)
    assert torch.equal(got.cpu(), want)
    want, want_mask = reference.top_m_stage(*tensors, 11, True)
    got, mask = torch.ops.deepl0.top_m_stage(*on(device, *tensors), 11, True)
    assert torch.equal(mask.cpu(), want_mask)
    assert torch.equal(got.cpu(), want)


def test_random_values_are_within_the_bound_of_float32(engine, device):
    x, W, S, theta = problem(20, 50, 90)
    z = torch.randn(20, 90)
    u, bound = pre_activation(x, W, z, S)
    args = (*on(device, x, W, z, S, None, theta), 0.2, "helu")
    _, got = torch.ops.deepl0.threshold_stage_saving(*args)
    assert ((got.cpu().double() - u).abs() <= bound).all()


def test_gradients_through_the_public_operators(engine, device):
    tensors = operands(5, 8, 20)
    theta = torch.full((20,), 5.0)
    for positive in (False, True):
        grads = []
        for backend in (None, "reference"):
            args = [t.to(device).requires_grad_() for t in (*tensors, theta, bias_of(20))]
            more = dict(bias=args[5], positive=positive)
            with dk.use_backend(backend):
                out = dk.threshold_stage(*args[:5], 0.5, **more)
                out = out + dk.top_m_stage(*args[:4], 14, **more)
                grads.append(torch.autograd.grad(out.square().sum(), args))
        compare(*grads)


def compare(ours, want):
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_two_runs_give_the_same_bits(engine, device):
    args = on(device, *problem(30, 20, 60)[:2], torch.randn(30, 60), torch.randn(60, 60))
    first, second = (torch.ops.deepl0.top_m_stage(*args, None, 9, False)[0] for _ in range(2))
    assert torch.equal(as_bits(first), as_bits(second))
