"""Peak memory of factored layers over large dictionaries, in a process of its own: no [B, p], no
copy of D; S would have 64 GB at the larger size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys, torch, deepl0_kernels as dk
torch.set_num_threads(1)
B, n, p, m, K = map(int, sys.argv[1:])
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def layer(p):
    return dk.nn.DeepMSparseEncoder(n, p, m, K, bias=True, positive=True, factored=True)
with torch.no_grad():
    layer(8192).encode(torch.randn(B, n))  # loads what is loaded once
    encoder, x = layer(p), torch.randn(B, n)
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = peak()
    code = encoder.encode(x)
    print(peak() - before)
assert (code.values[:, -1].isfinite() & (code.values.sum(1) > 0)).all()
"""
MIB = 2**20


@pytest.mark.parametrize(
    ("sizes", "most"),
    [((1024, 256, 16384, 32, 2), 40), ((128, 256, 131072, 32, 3), 200)],
    ids=["p=16384", "p=131072"],
)
def test_what_is_held_beyond_the_weights(sizes, most):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, sizes)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    if "'/proc/self/clear_refs'" in done.stderr:  # the file that an OSError names
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0, done.stderr
    rise = int(done.stdout)
    assert rise < most * MIB, f"{rise / MIB:.0f} MiB"
