"""batch_top_m against what the trainers of BatchTopK autoencoders write."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk

from .conftest import EAGER, OURS
from .rivals import eager_batch_top_m

SHAPES = [(4096, 512, 32), (1024, 4096, 32), (1024, 16384, 32)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_batch_top_m(race, shape, threads):
    """Nonnegative codes. The rival's are dense: ours are what it selects before it scatters."""
    batch, p, m = shape
    u = torch.randn(batch, p)
    with dk.use_backend("reference"):
        _, want, _ = dk.batch_top_m(u, m, positive=True)

    def check(name, out):
        if name == OURS:
            assert torch.equal(out[1], want)
        else:
            assert out.count_nonzero() == batch * m
            assert torch.equal(out[out != 0].sort().values, want.sort().values)

    race(
        "batch_top_m",
        f"B={batch} p={p} m={m}",
        {
            EAGER: lambda: eager_batch_top_m(u, m),
            OURS: lambda: dk.batch_top_m(u, m, positive=True),
        },
        check,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_top_m_training(race, shape, threads):
    """Values and the gradient of u."""
    batch, p, m = shape
    u = torch.randn(batch, p, requires_grad=True)
    weight = torch.randn(p)

    def eager():
        return torch.autograd.grad((eager_batch_top_m(u, m) * weight).sum(), u)[0]

    def ours():
        _, values, indices = dk.batch_top_m(u, m, positive=True)
        return torch.autograd.grad((values * weight[indices]).sum(), u)[0]

    want = eager()

    def check(name, out):
        torch.testing.assert_close(out, want)

    race("batch_top_m, training", f"B={batch} p={p} m={m}", {EAGER: eager, OURS: ours}, check)
