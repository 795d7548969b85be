"""Thresholds, forward and backward, against torch eager."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk

from .conftest import EAGER, OURS

SHAPES = [(4096, 512), (4096, 128), (128, 512), (1, 512)]
SIGMA = 0.2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_helu(race, shape, threads):
    batch, p = shape
    u, theta = torch.randn(batch, p), torch.rand(p) + 0.5
    want = dk.reference.threshold(u, theta, SIGMA, "helu")

    def eager():
        ramp = (u - u.sign() * (1 - SIGMA) * theta) / SIGMA
        a = u.abs()
        return torch.where(a >= theta, u, torch.where(a > (1 - SIGMA) * theta, ramp, 0.0))

    def check(name, out):
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)

    providers = {EAGER: eager, OURS: lambda: dk.helu(u, theta, SIGMA)}
    race("helu", f"B={batch} p={p}", providers, check)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_helu_forward_and_backward(race, shape, threads):
    batch, p = shape
    u, theta = torch.randn(batch, p), torch.rand(p) + 0.5
    grad = torch.randn(batch, p)
    want = dk.reference.threshold_backward(grad, u, theta, SIGMA, "helu")

    def run(function):
        a, t = u.detach().requires_grad_(), theta.detach().requires_grad_()
        return torch.autograd.grad(function(a, t), (a, t), grad)

    def check(name, out):
        torch.testing.assert_close(out[0], want[0])
        torch.testing.assert_close(out[1], want[1], rtol=1e-3, atol=1e-2)

    providers = {
        EAGER: lambda: run(lambda a, t: dk.reference.threshold(a, t, SIGMA, "helu")),
        OURS: lambda: run(lambda a, t: dk.helu(a, t, SIGMA)),
    }
    race("helu forward + backward", f"B={batch} p={p}", providers, check)
