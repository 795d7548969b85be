"""The Triton kernels of the thresholds against the reference."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import reference
from python_tests.oracle import STYLES, hostile, same_values

# Ragged, a single column, wider than a tile; more rows than one chunk of the backward.
SHAPES = [(0, 5), (1, 1), (7, 33), (65, 64), (3, 130), (2, 3, 70), (9, 600)]
KINDS = [
    ("hard", 0.0),
    ("soft", 0.0),
    ("helu", 0.0),
    ("helu", 0.2),
    ("ste", 0.5),
    ("ste_theta", 1.0),
    ("positive_hard", 0.0),
    ("positive_soft", 0.0),
    ("positive_helu", 0.3),
    ("positive_ste", 1.0),
    ("positive_ste_theta", 0.5),
]


def case(shape, dtype, style, scalar):
    u = hostile(shape, dtype, 3, style)
    theta = torch.rand(() if scalar else shape[-1:]) + 0.1
    return u, theta, torch.randn(shape).to(dtype)


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize(("kind", "sigma"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(engine, device, shape, kind, sigma, scalar):
    u, theta, grad = case(shape, torch.float32, "few_special" if shape[0] % 2 else "ties", scalar)
    want = reference.threshold(u, theta, sigma, kind)
    out = torch.ops.deepl0.threshold(u.to(device), theta.to(device), sigma, kind).cpu()
    assert torch.equal(out.isnan(), want.isnan())
    # On the ramp: docs/numerics.md, "Thresholds".
    bound = 4 * 2.0**-24 * torch.maximum(u.abs(), theta) / (sigma or 1.0)
    assert ((out - want).abs() <= bound)[want.isfinite()].all()

    want_u, want_theta = reference.threshold_backward(grad, u, theta, sigma, kind)
    grad_u, grad_theta = torch.ops.deepl0.threshold_backward(
        grad.to(device), u.to(device), theta.to(device), sigma, kind, 3
    )
    torch.testing.assert_close(grad_u.cpu(), want_u, rtol=2e-7, atol=0)
    torch.testing.assert_close(grad_theta.cpu(), want_theta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["positive_hard", "positive_soft"])
def test_one_sided_thresholds_at_zero(engine, device, kind):
    """A ReLU: bit for bit +0 where u <= 0, NaNs kept; its derivative at 0 is 0."""
    u, theta = hostile((4, 50), torch.float32, 1, "special"), torch.zeros(50)
    u[0, 0], u[0, 1], u[1, 0] = 0.0, -0.0, -torch.nan
    on_device = u.to(device), theta.to(device)
    out = torch.ops.deepl0.threshold(*on_device, 0.0, kind).cpu()
    assert same_values(out, reference.threshold(u, theta, 0.0, kind))
    ones = torch.ones_like(u)
    grads = torch.ops.deepl0.threshold_backward(ones.to(device), *on_device, 0.0, kind, 3)
    want = reference.threshold_backward(ones, u, theta, 0.0, kind)
    assert torch.equal(grads[0].cpu(), (u > 0).float())
    assert torch.equal(grads[0].cpu(), want[0])
    assert torch.equal(grads[1].cpu(), want[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
def test_half_types(engine, device, dtype, style):
    u, theta, _ = case((5, 77), dtype, style, False)
    args = (theta, 0.25, "helu")
    want = reference.threshold(u, *args)
    out = torch.ops.deepl0.threshold(u.to(device), theta.to(device), 0.25, "helu").cpu()
    # Triton's interpreter truncates where the hardware rounds.
    ulp = torch.finfo(dtype).eps * (1.0 if engine == "interpreter" else 0.51)
    torch.testing.assert_close(out, want, rtol=2 * ulp, atol=2e-7, equal_nan=True)


def test_strides_and_gradients_through_the_public_operator(engine, device):
    u = torch.randn(40, 12, device=device).t()[:, ::2].requires_grad_()
    theta = (torch.rand(20, device=device) + 0.2).requires_grad_()
    grads = []
    for backend in (None, "reference"):
        with dk.use_backend(backend):
            out = dk.helu(u, theta, 0.3)
            grads.append((out, *torch.autograd.grad(out.square().sum(), (u, theta))))
    for ours, want in zip(*grads, strict=True):
        torch.testing.assert_close(ours, want)
