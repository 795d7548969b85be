"""The whole encoder, forward and training step, against torch eager and torch.compile."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import squared_norm

from . import rivals
from .conftest import EAGER, FLOOR, OURS, PREPARED
from .rivals import (
    eager_encode_factored,
    eager_encode_l0,
    eager_encode_top_m,
    eager_sparse_autoencoder,
)

N = 256
SIZES = [
    (batch, p, m, stages)
    for stages in (2, 10)
    for p in (128, 512, 2048)
    for m in (10, 32, 64)
    for batch in (1, 16, 128, 4096)
]  # fmt: skip
# One stage, a large dictionary: S does not exist.
LARGE = [(batch, 16384, m, 1) for m in (10, 32, 64) for batch in (1, 16, 128, 4096)]
HUGE = [(batch, 131072, 32, 1) for batch in (1, 128)]
# Without S: stages z + W (x - D z) + b.
FACTORED = [(1, 2048, 32, 2), (128, 2048, 32, 2), (1024, 16384, 32, 2), (128, 131072, 32, 3)]


def weights(p: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W and S of a random unit-norm dictionary with a safe step: codes behave as in practice."""
    D = torch.nn.functional.normalize(torch.randn(N, p), dim=0)
    step = 0.99 / squared_norm(D)
    W = step * D.t().contiguous()
    return W, None if p > 4096 else torch.eye(p) - W @ D


def same_supports(want, *others):
    """A check of results: supports equal to the reference's but for near-ties, which are rare.

    ``others`` are providers of another result.
    """

    def check(name, out):
        indices = out[1].sort(-1).values
        same = (indices == want[1]).all(-1).float().mean()
        assert name in others or same > 0.97, (name, same)

    return check


@pytest.mark.parametrize("shape", SIZES + LARGE + HUGE, ids=str)
@torch.no_grad()
def test_encode_top_m(race, shape, threads):
    batch, p, m, stages = shape
    x, (W, S) = torch.randn(batch, N), weights(p)
    plan = dk.prepare(W, S)
    providers = {
        EAGER: lambda: eager_encode_top_m(x, W, S, m, stages),
        FLOOR: lambda: x @ W.t(),
        OURS: lambda: rivals.encode_top_m(x, W, S, m, num_stages=stages),
        PREPARED: lambda: rivals.encode_top_m(x, W, S, m, num_stages=stages, plan=plan),
    }
    if batch == 1 and S is not None:
        # One signal is served faster from S stored by columns, which is for the caller to choose.
        columns = S.t().contiguous().t()
        providers["deepl0, S by columns"] = lambda: rivals.encode_top_m(
            x, W, columns, m, num_stages=stages
        )
    if m == 32 and stages < 10:
        compiled = torch.compile(eager_encode_top_m)
        providers["torch.compile"] = lambda: compiled(x, W, S, m, stages)
    race(
        "encode_top_m",
        f"B={batch} p={p} m={m} K={stages}",
        providers,
        same_supports(dk.reference.encode_top_m(x, W, S, None, m, stages)),
    )


@pytest.mark.parametrize("batch", [128, 4096])
@pytest.mark.parametrize("p", [512, 16384])
@torch.no_grad()
def test_sparse_autoencoder(race, p, batch, threads):
    """One stage with bias and nonnegative codes, and what these two cost."""
    m, x, (W, _) = 32, torch.randn(batch, N), weights(p)
    plan = dk.prepare(W)
    bias = W.norm(dim=1).mean() * torch.randn(p) / 4
    neither = "deepl0, neither"
    want = dk.reference.encode_top_m(x, W, None, bias, m, 1, positive=True)
    race(
        "encode_top_m, bias and positive",
        f"B={batch} p={p} m={m} K=1",
        {
            EAGER: lambda: eager_sparse_autoencoder(x, W, bias, m),
            FLOOR: lambda: x @ W.t(),
            neither: lambda: rivals.encode_top_m(x, W, None, m, num_stages=1),
            OURS: lambda: rivals.encode_top_m(
                x, W, None, m, num_stages=1, bias=bias, positive=True
            ),
            PREPARED: lambda: rivals.encode_top_m(
                x, W, None, m, num_stages=1, bias=bias, positive=True, plan=plan
            ),
        },
        same_supports(want, neither),
    )


@pytest.mark.parametrize("shape", FACTORED, ids=str)
@torch.no_grad()
def test_encode_top_m_factored(race, shape, threads):
    batch, p, m, stages = shape
    x, atoms = torch.randn(batch, N), torch.nn.functional.normalize(torch.randn(p, N))
    W, D, bias = 0.99 / squared_norm(atoms.t()) * atoms, atoms.t(), torch.zeros(p)
    plan = dk.prepare(W, D=D)
    want = dk.reference.encode_top_m_factored(x, W, D, bias, None, [m] * stages, True)
    race(
        "encode_top_m, factored",
        f"B={batch} p={p} m={m} K={stages}",
        {
            EAGER: lambda: eager_encode_factored(x, W, D, bias, m, stages),
            FLOOR: lambda: x @ W.t(),
            OURS: lambda: rivals.encode_top_m(
                x, W, None, m, D=D, num_stages=stages, bias=bias, positive=True
            ),
            PREPARED: lambda: rivals.encode_top_m(
                x, W, None, m, D=D, num_stages=stages, bias=bias, positive=True, plan=plan
            ),
        },
        same_supports(want),
    )


@pytest.mark.parametrize("shape", [s for s in SIZES if s[0] > 16 and s[3] == 2], ids=str)
def test_encode_top_m_training(race, shape, threads):
    """Forward and backward into W and S, as in a training step on data."""
    batch, p, m, stages = shape
    x, (W, S) = torch.randn(batch, N), weights(p)
    W.requires_grad_()
    S.requires_grad_()
    grad = torch.randn(batch, m)

    def step(encode):
        values, indices, *_ = encode()
        return torch.autograd.grad(values, (W, S), grad), indices

    want = dk.reference.encode_top_m(x, W.detach(), S.detach(), None, m, stages)
    supports = same_supports(want)
    race(
        "encode_top_m forward + backward",
        f"B={batch} p={p} m={m} K={stages}",
        {
            EAGER: lambda: step(lambda: eager_encode_top_m(x, W, S, m, stages)),
            FLOOR: lambda: x @ W.t(),
            OURS: lambda: step(lambda: rivals.encode_top_m(x, W, S, m, num_stages=stages)),
        },
        lambda name, out: supports(name, (None, out[1])),
    )


@pytest.mark.parametrize("active", [0.05, 0.3])
@pytest.mark.parametrize("batch", [1, 16, 128, 4096])
@torch.no_grad()
def test_encode_l0(race, batch, active, threads):
    p, stages = 512, 2
    x, (W, S) = torch.randn(batch, N), weights(p)
    wide = torch.randn(1000, N) @ W.t()
    theta = torch.full((p,), float(wide.abs().flatten().quantile(1 - active)))
    want = dk.reference.encode_l0(x, W, S, None, theta, stages, 0.0, "helu")[0]

    def check(name, out):
        assert ((out - want).abs() > 1e-4).float().mean() < 1e-3, name

    compiled, plan = torch.compile(eager_encode_l0), dk.prepare(W, S)
    race(
        "encode_l0",
        f"B={batch} p={p} active={active} K={stages}",
        {
            EAGER: lambda: eager_encode_l0(x, W, S, theta, stages),
            FLOOR: lambda: x @ W.t(),
            "torch.compile": lambda: compiled(x, W, S, theta, stages),
            OURS: lambda: dk.encode_l0(x, W, S, theta, num_stages=stages),
            PREPARED: lambda: dk.encode_l0(x, W, S, theta, num_stages=stages, plan=plan),
        },
        check,
    )
