"""The l0-regularized encoder of the Triton floor against the reference, forward and backward; exact
on small integers, for which every order of summation gives the same float32."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import reference
from python_tests.ops.test_encode import problem
from python_tests.triton.conftest import EVERY, crossed
from python_tests.triton.test_encode import (
    SHAPES,
    assert_close_in_norm,
    matrices_for,
    operands,
)
from python_tests.triton.test_stage import bias_of, integers, on

OPS = torch.ops.deepl0
THETAS = ["scalar", "vector", "per_stage"]


@pytest.mark.parametrize(
    ("ramp", "theta_shape"),
    [
        *crossed([(0.0, "helu"), (0.5, "helu"), (0.5, "ste")], THETAS),
        ((0.5, "positive_helu"), "vector"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@EVERY
def test_is_exact_on_integers(engine, device, shape, theta_shape, ramp):
    sigma, kind = ramp
    batch, n, p, _, K = shape
    x, W, S = operands(batch, n, p, matrices_for(K, theta_shape == "per_stage"))
    theta = integers(K, p, high=9).abs() + 4.0
    theta = {"scalar": theta[0, 0], "vector": theta[0], "per_stage": theta}[theta_shape]
    given = x, W, S, bias_of(p) if kind.startswith("positive") else None, theta
    want, want_saved = reference.encode_l0(*given, K, sigma, kind, True)
    z, saved = OPS.encode_l0_saving(*on(device, *given), K, sigma, kind)
    assert torch.equal(saved.cpu(), want_saved)
    assert torch.equal(z.cpu(), want)
    assert torch.equal(OPS.encode_l0(*on(device, *given), K, sigma, kind).cpu(), want)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_after_every_stage(engine, device, dtype, biased):
    """z needs more bits than the half type has: K stages are single ones."""
    x, W, S = (t.to(dtype) for t in operands(9, 40, 72))
    x, bias = integers(9, 40, high=99).to(dtype), bias_of(72, dtype) if biased else None
    theta = torch.tensor(200.0)
    for K in (1, 3):
        want = reference.encode_l0(x, W, S, bias, theta, K, 0.0, "hard", True)
        given = on(device, x, W, S, bias, theta)
        z, saved = OPS.encode_l0_saving(*given, K, 0.0, "hard")
        assert torch.equal(saved.cpu(), want[1])
        assert torch.equal(z.cpu(), want[0])
        assert torch.equal(OPS.encode_l0(*given, K, 0.0, "hard"), z)
    stage = torch.zeros(9, 72, dtype=dtype, device=device)
    for _ in range(3):
        stage = OPS.threshold_stage(*given[:2], stage, *given[2:], 0.0, "hard")
    assert torch.equal(stage, z)
    wide = [None if t is None else t.float() for t in given]
    assert not torch.equal(OPS.encode_l0(*wide, 3, 0.0, "hard").to(dtype), z)


@pytest.mark.parametrize(
    ("kind", "theta_shape"),
    crossed(["helu", "ste", "ste_theta", "hard", "soft", "positive_helu", "positive_soft"], THETAS),
)
@pytest.mark.parametrize(
    "shape", [(70, 7, 33, 0, 3), (1, 1, 1, 0, 2), (0, 7, 9, 0, 2), (5, 40, 100, 0, 1)], ids=str
)
def test_gradients(engine, device, shape, theta_shape, kind):
    batch, n, p, _, K = shape
    per_stage = theta_shape == "per_stage"
    x, W, S, theta = problem(batch, n, p, 6, torch.float64, matrices_for(K, per_stage))
    theta = {"scalar": theta[0], "vector": theta, "per_stage": theta.expand(K, p) * 1.0}[
        theta_shape
    ]
    bias = bias_of(p, torch.float64)
    leaves = [t.clone().requires_grad_() for t in (x, W, S, theta, bias)]
    z, saved = reference.encode_l0(*leaves[:3], leaves[4], leaves[3], K, 0.5, kind, True)
    grad = torch.randn(z.shape, dtype=torch.float64)
    want = torch.autograd.grad(z, leaves, grad, materialize_grads=True)
    args = [t.detach().float() for t in (grad, saved, x, W, S, theta)]
    got = OPS.encode_l0_backward(*on(device, *args), 0.5, kind, 31)
    assert_close_in_norm(got, want, 1e-5)


def test_gradients_of_half_types(engine, device):
    """du and its sum are rounded before they are multiplied."""
    x, W, S = operands(6, 8, 30, dtype=torch.bfloat16)
    leaves = [t.float().requires_grad_() for t in (x, W, S, bias_of(30))]
    theta = torch.tensor(5.0, requires_grad=True)
    z, saved = reference.encode_l0(*leaves, theta, 2, 0.5, "hard", True)
    grad = integers(6, 30)
    want = torch.autograd.grad(z, (*leaves[:3], theta, leaves[3]), grad, materialize_grads=True)
    args = (grad.bfloat16(), saved.detach(), x, W, S, theta.detach())
    got = OPS.encode_l0_backward(*on(device, *args), 0.5, "hard", 31)
    assert_close_in_norm(got, [t.double() for t in want], 2e-2)
