"""top_m and keep_top_m against torch eager and torch.compile."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk

from .conftest import EAGER, OURS
from .rivals import eager_keep_top_m, eager_top_m

SHAPES = [
    (4096, 512, 32), (4096, 512, 10), (4096, 512, 64), (4096, 128, 32), (4096, 2048, 32),
    (512, 16384, 32), (128, 512, 32), (1, 512, 32), (64, 131072, 64),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_keep_top_m(race, shape, threads):
    batch, p, m = shape
    u = torch.randn(batch, p)
    want = dk.reference.keep_top_m(u, m)[0]
    compiled = torch.compile(eager_keep_top_m)

    def check(name, out):
        same = (out == want).all(-1).float().mean()
        # torch.topk takes any of several equal magnitudes, we take the lowest index.
        assert same == 1 if name == OURS else same > 0.99, (name, same)

    race(
        "keep_top_m",
        f"B={batch} p={p} m={m}",
        {
            EAGER: lambda: eager_keep_top_m(u, m),
            "torch.compile": lambda: compiled(u, m),
            OURS: lambda: dk.keep_top_m(u, m),
        },
        check,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_top_m(race, shape, threads):
    batch, p, m = shape
    u = torch.randn(batch, p)
    want = dk.reference.top_m(u, m)[1]

    def check(name, out):
        same = (out[1].sort(-1).values == want).all(-1).float().mean()
        assert same == 1 if name == OURS else same > 0.99, (name, same)

    race(
        "top_m",
        f"B={batch} p={p} m={m}",
        {EAGER: lambda: eager_top_m(u, m), OURS: lambda: dk.top_m(u, m)},
        check,
    )
