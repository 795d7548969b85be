"""The GPU benchmarks' problems, on a CPU: providers pass their check, a wrong result does not."""

from __future__ import annotations

import pytest
import torch

from bench import bench_gpu
from bench.conftest import OURS


@pytest.mark.parametrize(("case", "dtype"), bench_gpu.runs(bench_gpu.SMALL))
def test_providers_pass_the_gate(case, dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    problem = bench_gpu.SMALL[case](dtype, "cpu")
    for name, call in problem.providers.items():
        problem.check(name, call())
    assert problem.bytes > 0
    wrong = problem.providers[OURS]()
    wrong = _spoilt(wrong)
    with pytest.raises(AssertionError):
        problem.check(OURS, wrong)


def _spoilt(out):
    """The same structure with another content."""
    if isinstance(out, torch.Tensor):
        return torch.zeros_like(out) if out.is_floating_point() else out.roll(1, 0)
    return type(out)(_spoilt(part) for part in out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(pytester_run):
    assert "torch sees no GPU" in pytester_run


@pytest.fixture
def pytester_run():
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "bench/bench_gpu.py", "-p", "no:xdist"],
        capture_output=True, text=True, timeout=120, cwd=bench_gpu.records.FOLDER.parents[1],
    ).stdout  # fmt: skip
