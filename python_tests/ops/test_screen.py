"""One stage by screening: exact, batch-invariant, without [B, p]; see docs/screening.md."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import deepl0_kernels as dk
from python_tests.ops.test_encode import assert_top_m_stage, pre_activation
from python_tests.oracle import same_bits

N, P, M = 48, 4500, 20
STYLES = ["normal", "off centre", "correlated", "outlier", "scaled", "long", "long, of units"]


def one_stage(x, W, m=M):
    return dk.encode_top_m(x, W, None, m, num_stages=1)


def data(style: str, batch: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    n = 900 if style.startswith("long") else N
    x, W = torch.randn(batch, n, generator=g), torch.randn(P, n, generator=g)
    if style == "off centre":
        x, W = x + 5, W + 5
    elif style == "correlated":
        W = W[: P // 50].repeat(50, 1) + 1e-3 * W
    elif style == "outlier":  # one coordinate that int8 has no steps to spare for
        x[:, 7] = 1000
    elif style == "scaled":
        x = x * torch.logspace(-12, 12, batch)[:, None]
        W = W * torch.logspace(-6, 6, P)[torch.randperm(P, generator=g), None]
    elif style == "long, of units":  # int8 excludes enough, as without the units it does not
        some = torch.randint(P, (batch, M), generator=g)
        x = W[some].sum(1) + x
    return x, W


@pytest.mark.parametrize("style", STYLES)
def test_equals_float64_but_for_near_ties(style):
    x, W = data(style)
    u, bound = pre_activation(x, W, torch.zeros(len(x), 1), torch.zeros(P, 1))
    swaps = assert_top_m_stage(u, bound, one_stage(x, W), M)
    assert swaps <= (20 if style == "correlated" else 2)


@pytest.mark.parametrize("m", [1, 4, M, 300])
def test_ties_go_to_the_lowest_index(m):
    """Small integers make every sum exact, and ties abound."""
    x, W = (t.mul(2).round() for t in data("normal"))
    got = one_stage(x, W, m)
    want = dk.reference.top_m((x @ W.t()).double(), m)
    assert torch.equal(got.indices, want[1])
    assert torch.equal(got.values.double(), want[0])


def test_rows_and_units_that_are_not_finite():
    x, W = data("normal")
    x[3, 5], x[9] = float("nan"), 0
    W[77, 1], W[4321] = float("inf"), float("nan")
    code = one_stage(x, W)
    with dk.use_backend("reference"):
        want = one_stage(x, W)
    finite = torch.arange(len(x)) != 9
    assert (code.indices == want.indices)[finite].all(-1).float().mean() > 0.95
    assert torch.equal(code.values.isnan()[finite], want.values.isnan()[finite])
    # 0 * inf is NaN, so the row of zeros has two NaN and the lowest indices.
    assert code.indices[9].tolist() == [*range(M - 2), 77, 4321]


@pytest.mark.parametrize("n", [1, 45])
def test_sizes_that_fill_no_vector(n):
    """Small integers make sums exact; a row of NaN and one of zeros are computed whole."""
    x, W = (t[:, :n].mul(2).round() for t in data("normal"))
    x[5], x[6], W = torch.nan, 0, W[: P - 1]
    got = one_stage(x, W)
    want = dk.reference.top_m((x @ W.t()).double(), M)
    assert torch.equal(got.indices, want[1])
    torch.testing.assert_close(got.values.double(), want[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("style", ["normal", "off centre", "outlier", "long", "long, of units"])
def test_batch_invariant(style):
    """The documented guarantee: a row's code has the same bits alone, in any batch, any threads."""
    x, W = data(style)
    whole = one_stage(x, W)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        parts = [one_stage(x[i : i + size], W) for i, size in ((0, 1), (1, 2), (3, 29), (32, 38))]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([c.indices for c in parts]), whole.indices)
    assert same_bits(torch.cat([c.values for c in parts]), whole.values)
    strided = torch.stack([x, x], -1)[..., 0]
    assert same_bits(one_stage(strided, W.t().contiguous().t()).values, whole.values)


SCRIPT = """
import sys, torch, deepl0_kernels as dk
from python_tests.ops.test_screen import STYLES, data, one_stage
codes = [one_stage(*data(s)) for s in STYLES]
torch.save([(c.values, c.indices) for c in codes], sys.argv[1])
"""


def run(screen: str, path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        env=os.environ | {"DEEPL0_SCREEN": screen},
        capture_output=True,
        text=True,
    )


def test_the_switch_changes_no_bit(tmp_path):
    """By the rule, with neither, and with whatever the processor has: up to three kinds."""
    codes = {}
    for screen in ("", "0", "1"):
        done = run(screen, tmp_path / f"codes{screen}")
        assert done.returncode == 0, done.stderr
        codes[screen] = torch.load(tmp_path / f"codes{screen}")
    for screen in "01":
        for (v0, i0), (v1, i1) in zip(codes[""], codes[screen], strict=True):
            assert torch.equal(i0, i1)
            assert same_bits(v0, v1)


def test_another_word_is_an_error(tmp_path):
    done = run("yes", tmp_path / "x")
    assert done.returncode != 0
    assert 'DEEPL0_SCREEN must be 0 or 1, got "yes"' in done.stderr


def test_gradients_equal_the_reference():
    x, W = data("normal")
    grads = []
    for backend in ("cpu", "reference"):
        xs, Ws = x.clone().requires_grad_(), W.clone().requires_grad_()
        with dk.use_backend(backend):
            code = one_stage(xs, Ws)
        code.values.square().sum().backward()
        grads.append((xs.grad, Ws.grad))
    for got, want in zip(*grads, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()


MEMORY = """
import torch, deepl0_kernels as dk

def peak():
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if "VmHWM" in l)

torch.set_num_threads(1)
batch, p, n, m = 4096, 16384, 64, 32
x, W = torch.randn(batch, n), torch.randn(p, n)
dk.encode_top_m(x[:64], W, None, m, num_stages=1)
before = peak()
dk.encode_top_m(x, W, None, m, num_stages=1)
print((peak() - before) / (batch * p * 4))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc/self/status")
def test_the_pre_activations_are_never_held():
    """Packed weights and workspace included, a small part of [B, p]."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1 / 8


def test_sums_whose_terms_flush_to_zero():
    """In bf16 the large units' terms are subnormal and lost; the bound must cover them."""
    n, m = 256, 10
    x, W, unit = torch.full((64, n), 2.0**-64), torch.zeros(P, n), torch.arange(P)
    # One term each, which is kept: up to 2^-124, all but few below the m largest of any tile.
    W[unit, unit % n] = 2.0**-62 * (1 + unit % 127 / 128) * 2.0 ** (unit % 2)
    large = torch.arange(7, P, P // m)[:m]
    W[large] = 2.0**-64  # 256 terms of 2^-128, 2^-120 in all
    code = one_stage(x, W, m)
    assert torch.equal(code.indices, large.expand(64, m))
    assert torch.equal(code.values, torch.full((64, m), 2.0**-120))
