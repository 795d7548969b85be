"""Peak memory of a training step, measured in a process of its own: O(K B m), not [B, p]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Prints the rise of the peak resident size over a step. A small step before loads what is loaded
# once (the kernels, the BLAS and its packing buffers).
MEASURE = """
import sys, torch, deepl0_kernels as dk
torch.set_num_threads(1)
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def encode(B, n, p, m, K):
    x, W, S = torch.randn(B, n), torch.randn(p, n), torch.randn(p, p) / p
    args = [W.requires_grad_(), S.requires_grad_()]
    def step():
        code = dk.encode_top_m(x, *args, m, num_stages=K)
        torch.autograd.grad(code.values, args, torch.ones(B, m))
    return step
def decode(B, n, p, m, K):
    values, D = torch.randn(B, m).requires_grad_(), torch.randn(n, p).requires_grad_()
    indices = torch.arange(m).expand(B, m) + torch.arange(B)[:, None] % (p - m)
    code, grad = dk.SparseCode(values, indices, p), torch.ones(B, n)
    def step():
        torch.autograd.grad(dk.decode(code, D), (values, D), grad)
    return step
make, sizes = {"encode": encode, "decode": decode}[sys.argv[1]], map(int, sys.argv[2:])
B, n, p, m, K = sizes
make(64, n, p, m, K)()
step = make(B, n, p, m, K)
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = peak()
step()
print(peak() - before)
"""

MIB = 2**20
B, N, P, M, K = 65536, 64, 1024, 16, 3


def rise(name: str) -> int:
    command = [sys.executable, "-c", MEASURE, name, *map(str, (B, N, P, M, K))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2]
    )
    if "'/proc/self/clear_refs'" in done.stderr:  # the file that an OSError names
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# Panels, unit starts, transposed copies of the matrices, pages of the allocator: none grows with B
# by more than a few bytes a row.
FIXED = 48 * MIB


def test_a_training_step_of_encode_top_m_keeps_to_the_sparse_codes():
    # K codes of (int64, float32), and in csrc/torch/encode_top_m_backward.cpp, for every entry: an
    # int32 index, du, and the lists by step (row, coefficient) and of the total (row,
    # coefficient); the grad of the values and its copy. Together < 3 times 12 bytes an entry.
    gradients = 4 * (P * N + P * P)
    measured = rise("encode")
    assert measured <= 3 * 12 * K * B * M + gradients + FIXED
    # The dense code and its pre-activations would take K of these.
    assert measured < 4 * B * P


def test_a_training_step_of_decode_keeps_to_the_sparse_codes():
    # Forward: the output. Backward: the gradient of the values and lists of (row, coefficient).
    measured = rise("decode")
    assert measured <= 12 * B * M + 4 * B * N + 3 * 4 * P * N + FIXED
    assert measured < 4 * B * P
