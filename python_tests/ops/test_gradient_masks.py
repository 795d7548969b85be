"""A backward computes what is asked for: the same bits as with everything else, and neither memory
nor time for the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepl0_kernels as dk

from .test_memory import MIB


def by_columns(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def check(operator, args: tuple, names: int) -> None:
    """Every mask against the full one; operands that no wanted gradient needs may be anything."""
    full = operator(*args, 2**names - 1)
    for mask in range(2**names):
        for bit, (got, want) in enumerate(zip(operator(*args, mask), full, strict=True)):
            if mask >> bit & 1:
                assert torch.equal(got, want), (mask, bit)
                assert got.stride() == want.stride(), (mask, bit)
            else:
                assert got.shape == (0,), (mask, bit)
                assert got.dtype == want.dtype, (mask, bit)


SIZES = [(40, 24, 300, 9), (40, 24, 64, 30), (3, 24, 300, 2), (700, 8, 48, 4)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, by_columns])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_encoders(stages, size, dtype, layout):
    torch.manual_seed(0)
    B, n, p, m = size
    x, W, S = torch.randn(B, n), layout(torch.randn(p, n) / 4), torch.randn(2, p, p) / p
    S = layout(S[: stages - 1] if stages > 2 else S[0])
    x, W, S = (t.to(dtype) for t in (x, W, S))
    bias, D = torch.randn(p).to(dtype) / 4, layout(torch.randn(n, p) / 4).to(dtype)
    grad = torch.randn(B, m).to(dtype)
    for positive in (False, True):
        v, *codes = torch.ops.deepl0.encode_top_m_saving(x, W, S, bias, m, stages, positive)
        args = (grad, v if positive else None, *codes, x, W, S)
        check(torch.ops.deepl0.encode_top_m_backward, args, 4)
        entries = [*[2, m, 3][: stages - 1], m]
        v, *codes = torch.ops.deepl0.encode_top_m_factored_saving(
            x, W, D, bias, None, entries, positive
        )
        args = (grad, v if positive else None, *codes, x, W, D, None, entries)
        check(torch.ops.deepl0.encode_top_m_factored_backward, args, 5)
    low = torch.float64 if dtype == torch.float64 else torch.float32
    for scale in (0.05, 1.5):  # dense and sparse blocks
        theta = torch.full((stages, p), scale, dtype=low)
        for kind in ("helu", "ste_theta"):
            _, saved = torch.ops.deepl0.encode_l0_saving(x, W, S, bias, theta, stages, 0.3, kind)
            grad = torch.randn(B, p).to(dtype)
            args = (grad, saved, x, W, S, theta, 0.3, kind)
            check(torch.ops.deepl0.encode_l0_backward, args, 5)
        step = torch.full((stages,), 0.5, dtype=low)
        args = (x, W, D, bias, step, theta, stages, 0.3, "positive_helu")
        _, saved = torch.ops.deepl0.encode_l0_factored_saving(*args)
        args = (grad, saved, x, W, D, step, theta, 0.3, "positive_helu")
        check(torch.ops.deepl0.encode_l0_factored_backward, args, 6)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, by_columns])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_decode_and_thresholds(size, dtype, layout):
    torch.manual_seed(0)
    B, n, p, m = size
    values, indices = torch.ops.deepl0.top_m(torch.randn(B, p).to(dtype), m, False)
    args = (torch.randn(B, n).to(dtype), values, indices, layout(torch.randn(n, p)).to(dtype))
    check(torch.ops.deepl0.decode_backward, args, 2)
    x, _, _, D = args
    check(torch.ops.deepl0.refit_backward, (torch.randn(B, m).to(dtype), x, D, indices), 2)
    u, grad = (torch.randn(B, p).to(dtype) for _ in range(2))
    low = torch.float64 if dtype == torch.float64 else torch.float32
    for theta in (torch.tensor(0.7, dtype=low), torch.full((p,), 0.7, dtype=low)):
        for kind in ("soft", "helu", "ste_theta", "positive_hard", "positive_helu"):
            check(torch.ops.deepl0.threshold_backward, (grad, u, theta, 0.4, kind), 2)


# A frozen dictionary of 65,536 atoms: W and D are 64 MiB each here.
FROZEN = """
import sys, time, torch, deepl0_kernels as dk
torch.set_num_threads(1)
p, n, B, m = 65536, 256, 16, 32
layout = dict(rows=lambda t: t, columns=lambda t: t.t().contiguous().t())[sys.argv[1]]
W, D = layout(torch.randn(p, n) / 16), layout(torch.randn(n, p) / 16)
x = torch.randn(B, n, requires_grad=True)
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def backward(inputs):
    y = dk.decode(dk.encode_top_m(x, W, None, m, num_stages=1), D)
    g = torch.ones_like(y)
    open("/proc/self/clear_refs", "w").write("5")
    before, start = peak(), time.process_time()
    torch.autograd.grad(y, inputs, g)
    return time.process_time() - start, peak() - before
alone = [backward([x]) for _ in range(3)]
W.requires_grad_(), D.requires_grad_()
every = [backward([x, W, D]) for _ in range(3)]
print(min(t for t, _ in alone), max(b for _, b in alone[1:]), min(t for t, _ in every))
"""


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_frozen_dictionary_costs_neither_its_size_nor_its_time(layout):
    command = [sys.executable, "-c", FROZEN, layout]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2]
    )
    if "'/proc/self/clear_refs'" in done.stderr:  # the file that an OSError names
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0, done.stderr
    alone, rise, every = map(float, done.stdout.split())
    assert rise < 4 * MIB  # one dW or dD is 64
    assert alone < every / 3


def test_one_stage_does_not_touch_s():
    """S of one stage is nobody's operand: its NaN appears nowhere, its gradient is none."""
    p = 64
    x, W = torch.randn(7, 8).requires_grad_(), torch.randn(p, 8).requires_grad_()
    for dtype in (torch.float32, torch.bfloat16):
        S = torch.full((1, 1), float("nan"), dtype=dtype).expand(p, p).requires_grad_()
        args = [t.detach().to(dtype).requires_grad_() for t in (x, W)]
        code = dk.encode_top_m(*args, S, 5, num_stages=1)
        z = dk.encode_l0(*args, S, 0.5, num_stages=1)
        for out in (code.values, z):
            grads = torch.autograd.grad(out.sum(), [*args, S], allow_unused=True)
            assert grads[2] is None
            assert all(g.isfinite().all() for g in grads[:2])
