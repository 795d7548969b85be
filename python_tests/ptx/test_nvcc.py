"""CUDA C++ kernels, compiled by nvcc to PTX for sm_80 and executed, against NumPy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from .engine import run_ptx
from .errors import AsyncCopyError, OutOfBoundsError, RaceError
from .support import find_nvcc

SOURCE = Path(__file__).with_name("nvcc_kernels.cu")
RNG = np.random.default_rng(0)


def compile_cuda(folder: Path, *flags: str) -> str:
    out = folder / "kernels.ptx"
    command = [
        find_nvcc(),
        "-ptx",
        "-arch=sm_80",
        "-std=c++17",
        *flags,
        str(SOURCE),
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out.read_text()


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> str:
    return compile_cuda(tmp_path_factory.mktemp("nvcc"), "-DWITH_CUB")


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> str:
    """The same kernels without a barrier, and with a wait for one copy too few."""
    return compile_cuda(tmp_path_factory.mktemp("broken"), "-DNO_BARRIER", "-DDEPTH=1")


def test_reduction_with_shuffles(ptx, broken):
    x, out = RNG.standard_normal((3, 300)).astype("f4"), np.zeros(3, "f4")
    run_ptx(ptx, "block_sum", 3, 128, [x, out, 300])
    np.testing.assert_allclose(out, x.sum(1), rtol=1e-5)
    with pytest.raises(RaceError, match="shared memory"):
        run_ptx(broken, "block_sum", 3, 128, [x, out, 300])
    with pytest.raises(OutOfBoundsError):
        run_ptx(ptx, "block_sum", 3, 128, [x, out, 301])


def test_compaction_with_ballots(ptx):
    x = RNG.standard_normal(250).astype("f4")
    index, count = np.full(256, -1, "i4"), np.zeros(1, "i4")
    run_ptx(ptx, "compact", 1, 256, [x, 250, 1.0, index, count])
    want = np.flatnonzero(np.abs(x) >= 1)
    assert count[0] == len(want)
    np.testing.assert_array_equal(index[: len(want)], want)
    assert (index[len(want) :] == -1).all()


def test_histogram_with_shared_atomics(ptx):
    x, bins = RNG.integers(0, 256, 3000).astype("u1"), np.zeros(256, "u4")
    run_ptx(ptx, "histogram", 4, 128, [x, 3000, bins], shared_bytes=1024)
    np.testing.assert_array_equal(bins, np.bincount(x, minlength=256))
    with pytest.raises(OutOfBoundsError, match="shared"):
        run_ptx(ptx, "histogram", 4, 128, [x, 3000, bins], shared_bytes=1020)


def test_block_radix_sort(ptx):
    keys, values = RNG.integers(0, 1000, 512).astype("u4"), np.arange(512, dtype="i4")
    before = keys.copy()
    run_ptx(ptx, "radix_sort", 1, 128, [keys, values])
    order = np.argsort(~before, kind="stable")
    np.testing.assert_array_equal(values, order)
    np.testing.assert_array_equal(keys, before[order])


def test_block_scan_and_reduction(ptx):
    x, out, total = RNG.integers(-50, 50, 384).astype("i4"), np.zeros(384, "i4"), np.zeros(1, "i4")
    run_ptx(ptx, "scan", 1, 128, [x, out, total])
    np.testing.assert_array_equal(out, np.cumsum(x) - x)
    assert total[0] == x.sum()
    y, result = RNG.standard_normal(96), np.zeros(1)
    run_ptx(ptx, "sum_of_96", 1, 96, [y, result])
    np.testing.assert_allclose(result[0], y.sum())


def test_pipelined_copies(ptx, broken):
    x, out = RNG.standard_normal((5, 64, 4)).astype("f4"), np.zeros(64, "f4")
    run_ptx(ptx, "copy_through_shared", 1, 64, [x, out, 5])
    np.testing.assert_allclose(out, x.sum((0, 2))[::-1], rtol=1e-4, atol=1e-5)
    with pytest.raises(AsyncCopyError):
        run_ptx(broken, "copy_through_shared", 1, 64, [x, out, 5])


def test_device_functions(ptx):
    x, out = RNG.standard_normal(100).astype("f4"), np.zeros(100, "f4")
    run_ptx(ptx, "calls", 2, 64, [x, out, 100])
    y = x.astype("f8")
    want = np.exp(y) + np.log(np.abs(y) + 1) + np.sin(y)
    for i, v in enumerate(y):
        r = 0.0
        for k in range(i % 5):
            r = r * v + k
        want[i] += r
    np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)


def test_local_arrays_constants_and_switch(ptx):
    x, out = RNG.integers(0, 100, 64).astype("i4"), np.zeros(64, "f4")
    run_ptx(ptx, "local_arrays", 1, 64, [x, out])
    want = []
    for v in x:
        a = [j * 2.0 ** (j % 4) for j in range(8)]
        case = v & 7
        if case == 0:
            a[1] = 7
        elif case == 1:
            a[2] = 5
        elif case == 2:
            a[3] *= 2
        elif case == 3:
            a[0] = a[7]
        elif case == 4:
            a[5] = a[6]
        else:
            a[4] = 0
        want.append(sum(a[(j * v) & 7] for j in range(8)))
    np.testing.assert_array_equal(out, np.array(want, "f4"))


def test_block_votes_with_a_partial_warp(ptx):
    x, out = RNG.integers(-5, 6, 70).astype("i4"), np.zeros(70, "i4")
    run_ptx(ptx, "votes", 1, 70, [x, out])
    same = np.array([(x[i // 32 * 32 : i // 32 * 32 + 32] == x[i]).sum() for i in range(70)])
    np.testing.assert_array_equal(out, (x > 0).sum() + 1000 * (x == 5).any() + 10000 * same)


def test_bf16_and_64_bit_atomics(ptx):
    x = torch.randn(50).bfloat16()
    out, best = torch.zeros(50).bfloat16(), torch.zeros(1, dtype=torch.int64)
    run_ptx(ptx, "halves", 1, 64, [x, out, best, 50])
    # nvcc contracts the product and the sum, which rounds once or twice.
    torch.testing.assert_close(out, x * x + 0.5)
    assert 50 - (best.item() & 0xFFFFFFFF) == x.float().abs().argmax().item()
