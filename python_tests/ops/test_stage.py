"""One stage: value, derivatives, and agreement with the whole encoder."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from python_tests.ops.test_encode import assert_top_m_stage, pre_activation, problem

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("batch", "n", "p", "m"), [(1, 5, 8, 3), (130, 64, 300, 20), (0, 5, 8, 3), (9, 3, 1, 1)]
)
def test_values(backend, batch, n, p, m):
    x, W, S, theta = problem(batch, n, p)
    z = torch.randn(batch, p)
    u, bound = pre_activation(x, W, z, S)
    with dk.use_backend(backend):
        kept = dk.top_m_stage(x, W, z, S, m)
        values = dk.threshold_stage(x, W, z, S, theta, 0.2)
    indices = kept.abs().topk(m).indices.sort(-1).values
    assert_top_m_stage(u, bound, dk.SparseCode(kept.gather(-1, indices), indices, p), m)
    want = dk.reference.threshold(u, theta.double(), 0.2, "helu")
    near = (u.abs() - theta.double()).abs() <= bound
    assert (near | ((values.double() - want).abs() <= bound / 0.2 + 2.0**-20)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    x, W, S, theta = problem(3, 4, 7, 2, torch.float64, scale=1.0)
    z = torch.randn(3, 7, dtype=torch.float64)
    args = [t.requires_grad_() for t in (x, W, z, S)]
    with dk.use_backend(backend):
        assert torch.autograd.gradcheck(lambda *a: dk.top_m_stage(*a, 3), args)
        assert torch.autograd.gradgradcheck(lambda *a: dk.top_m_stage(*a, 3), args)
        full = (*args, theta.requires_grad_())
        assert torch.autograd.gradcheck(lambda *a: dk.threshold_stage(*a, 0.4), full)
        assert torch.autograd.gradgradcheck(lambda *a: dk.threshold_stage(*a, 0.4), full)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stages_make_the_encoder(backend):
    x, W, S, theta = problem(20, 10, 30, dtype=torch.float64)
    with dk.use_backend(backend):
        z = a = torch.zeros(20, 30, dtype=torch.float64)
        for _ in range(3):
            z = dk.top_m_stage(x, W, z, S, 5)
            a = dk.threshold_stage(x, W, a, S, theta, 0.1)
        torch.testing.assert_close(z, dk.encode_top_m(x, W, S, 5, num_stages=3).to_dense())
        torch.testing.assert_close(a, dk.encode_l0(x, W, S, theta, num_stages=3, sigma=0.1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(z=torch.randn(4, 19)), ("z must have shape [B, p]", "(4, 19)")),
        (dict(x=torch.randn(10)), ("x must have shape [B, n]", "(10,)")),
        (dict(S=torch.randn(1, 20, 20)), ("S must have shape [p, p]", "(1, 20, 20)")),
        (dict(z=torch.randn(4, 20).double()), ("z must have the dtype of x", "float64")),
    ],
)
def test_bad_input_is_named(change, words):
    x, W, S, theta = problem(4, 10, 20)
    operands = (dict(x=x, W=W, z=torch.randn(4, 20), S=S) | change).values()
    for call in (
        lambda: dk.top_m_stage(*operands, 3),
        lambda: dk.threshold_stage(*operands, theta),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            call()
        assert all(word in str(caught.value) for word in words), caught.value
