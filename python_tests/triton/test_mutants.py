"""Deliberate defects in the PTX of the shipped kernels: does anything of the suite notice?

A mutant is caught if executing it is refused (a race, an access out of bounds, a divergent barrier)
or the operator's result changes. Many change nothing that could be seen: guards that always hold at
these sizes, branches that only save time, barriers whose neighbours do the same.
"""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels.triton import launch
from python_tests.oracle import hostile
from python_tests.ptx import mutate
from python_tests.ptx.engine import compile_triton
from python_tests.ptx.engine import launch as run_ptx
from python_tests.ptx.layout import Options

OPS = torch.ops.deepl0
# A mutant may loop for ever.
OPTIONS = Options(max_steps=100_000)


def keep_top_m():
    """Rows in registers, two programs; special values, and ties at cuts all along the row."""
    ties = torch.randint(-1, 2, (3, 127)).float()
    u = torch.cat([torch.ones(1, 127), ties, hostile((2, 127), torch.float32, 0, "few_special")])
    return lambda: tuple(t for m in (9, 60, 125) for t in OPS.keep_top_m(u, m, False))


def threshold_stage():
    """A sum of all three terms that is kept, two tiles of rows; a wide ramp."""
    x, W, z, S = (torch.randn(s).half() for s in ((70, 40), (33, 40), (70, 33), (33, 33)))
    theta = torch.full((33,), 10.0)
    return lambda: OPS.threshold_stage_saving(x, W, z, S, W[:, 0], theta, 0.9, "helu")


def encode_top_m():
    """Two stages, the second by gathers; small integers, so that magnitudes tie at cuts all along
    the row and sums are exact."""
    x, W, S = (torch.randint(-1, 2, s).float() for s in ((11, 4), (120, 4), (120, 120)))
    S *= torch.rand(S.shape) < 0.05
    return lambda: tuple(
        t for m in (5, 17, 30) for t in OPS.encode_top_m_saving(x, W, S, None, m, 2, False)
    )


def same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> bool:
    return all(
        torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4, equal_nan=True)
        for a, b in zip(got, want, strict=True)
    )


def instance_of(job: launch.Launch) -> tuple:
    """What of a launch makes other machine code."""
    return job.kernel.__name__, *(a is None for a in job.args), *job.constants.values()


@pytest.fixture
def mutable(engine, monkeypatch):
    """(PTX of a kernel, check of a text of it) for a call of an operator that launches it."""

    def prepare(kernel: str, call):
        def run(job: launch.Launch, instance: tuple = (), text: str = "") -> None:
            replaced = instance_of(job) == instance
            run_ptx(
                job.kernel, job.grid, job.args, job.constants, num_warps=job.config.warps,
                num_stages=1, target=int(engine[2:]), options=OPTIONS,
                transform=(lambda _: text) if replaced else None,
            )  # fmt: skip

        jobs: list[launch.Launch] = []
        monkeypatch.setattr(launch, "run", lambda job: (jobs.append(job), run(job)))
        want = call()
        job = [job for job in jobs if job.kernel.__name__ == kernel][-1]  # the one with all terms
        compiled, _, _ = compile_triton(
            job.kernel, job.args, job.constants, int(engine[2:]),
            num_warps=job.config.warps, num_stages=1,
        )  # fmt: skip

        def check(text: str) -> bool:
            monkeypatch.setattr(launch, "run", lambda other: run(other, instance_of(job), text))
            return same(call(), want)

        return compiled.asm["ptx"], check

    return prepare


# Kernel, the call that launches it, and the share of its mutants that must be caught.
SUBJECTS = {
    "keep_top_m_fwd_kernel": (keep_top_m, 0.7),
    "threshold_fwd_kernel": (threshold_stage, 0.7),
    "top_m_fwd_kernel": (encode_top_m, 0.7),
}


@pytest.mark.parametrize("engine", ["sm80", "sm90"], indirect=True)
@pytest.mark.parametrize("kernel", SUBJECTS)
def test_most_mutants_are_caught(kernel, mutable, capsys):
    make, least = SUBJECTS[kernel]
    text, check = mutable(kernel, make())
    report = mutate.survivors(text, check, mutate.mutants(text, seed=0, per_kind=1))
    with capsys.disabled():
        print(f"\n{kernel}: {report}")
    assert len(report.caught) >= 6
    assert report.share >= least
