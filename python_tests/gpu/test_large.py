"""Tensors of more than 2^31 elements: every offset is of 64 bits."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.backends import GPU as FLOORS
from deepl0_kernels.cuda import library

GPU = torch.device("cuda")
ROWS, P = 66_000, 32_800  # 2.16e9 elements


@pytest.fixture(autouse=True)
def memory():
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < 45 << 30:
        pytest.skip(f"needs 45 GiB of free GPU memory, there are {free >> 30}")
    yield
    torch.cuda.empty_cache()


def some_rows(rows: int = ROWS) -> torch.Tensor:
    """The first, those at the 31st bit, the last."""
    edge = (1 << 31) // P
    return torch.tensor([0, edge - 1, edge, edge + 1, rows - 2, rows - 1], device=GPU)


@pytest.mark.parametrize("m", [32, 5000])
def test_selection(floor, m):
    u = torch.randn(ROWS, P, device=GPU, dtype=torch.bfloat16)
    at = some_rows()
    want_values, want_indices = dk.reference.top_m(u[at], m)
    values, indices = dk.top_m(u, m)
    assert torch.equal(indices[at], want_indices)
    assert torch.equal(values[at], want_values)
    want = dk.reference.unpool(want_values, want_indices, P)
    assert torch.equal(dk.unpool(values, indices, P)[at], want)
    del values, indices
    kept, mask = torch.ops.deepl0.keep_top_m(u, m, False)
    assert torch.equal(kept[at], want)
    del kept
    assert torch.equal(torch.ops.deepl0.apply_mask(u, mask)[at], want)


@pytest.mark.parametrize("floor", ["cuda"], indirect=True)
@pytest.mark.skipif(
    not FLOORS["cuda"].installed(), reason="built without CUDA kernels (nvcc was missing)"
)
def test_rows_read_once(floor):
    with library.rows_read_once():
        test_selection(floor, 32)


def test_thresholds():
    u = torch.randn(ROWS, P, device=GPU, dtype=torch.bfloat16)
    theta, at = torch.rand(P, device=GPU) + 0.5, some_rows()
    out = torch.ops.deepl0.threshold(u, theta, 0.0, "hard")
    assert torch.equal(out[at], dk.reference.threshold(u[at], theta, 0.0, "hard"))
    grad, _ = torch.ops.deepl0.threshold_backward(u, u, theta, 0.0, "hard", 3)
    assert torch.equal(
        grad[at], dk.reference.threshold_backward(u[at], u[at], theta, 0.0, "hard")[0]
    )


def test_encoder(floor):
    batch, p = 17_000, 131_072  # W x has 2.2e9 elements
    x = torch.randint(-3, 4, (batch, 16), device=GPU).float()
    W = torch.randint(-3, 4, (p, 16), device=GPU).float()
    at = torch.tensor([0, 16_383, 16_384, 16_385, batch - 1], device=GPU)
    code = dk.encode_top_m(x, W, None, 32, num_stages=1)
    values, indices = code.values, code.indices
    want_values, want_indices = dk.reference.top_m(x[at] @ W.t(), 32)
    assert torch.equal(indices[at], want_indices)
    assert torch.equal(values[at], want_values)


def test_decode(floor):
    p, m = 64, 3
    values = torch.randn(ROWS, m, device=GPU)
    indices = torch.rand(ROWS, p, device=GPU).argsort(1)[:, :m]
    D = torch.randn(P, p, device=GPU)
    out = dk.decode(dk.SparseCode(values, indices, p), D)
    at = some_rows()
    want = dk.reference.decode(values[at].double(), indices[at], D.double())
    torch.testing.assert_close(out[at].double(), want, rtol=1e-5, atol=1e-5)
    grads = torch.ops.deepl0.decode_backward(out, values, indices, D, 3)
    terms = out[at].double()[:, None, :] * D.t().double()[indices[at]]
    # A lane adds P / 32 products, then lanes are added.
    bound = (P / 32 + 8) * 2.0**-24 * terms.abs().sum(-1)
    assert ((grads[0][at].double() - terms.sum(-1)).abs() <= bound).all()
    assert terms.sum(-1).abs().median() > 1000 * bound.max()
