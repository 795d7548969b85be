"""Deliberate defects in correct kernels: most must be noticed, and those that matter all."""

from __future__ import annotations

import pytest
import torch

from . import mutate
from .engine import compile_triton, launch
from .layout import Options
from .support import require_triton

require_triton()
from . import triton_kernels as kernels  # noqa: E402 - it imports triton

# A mutant may loop for ever.
OPTIONS = Options(max_steps=100_000)


def subject(kernel, grid, inputs, out, sizes, constants, target, want, atol):
    """(PTX, check) of a kernel called as (*inputs, out, *sizes)."""

    def check(text: str) -> bool:
        out.fill_(float("nan"))
        launch(
            kernel,
            grid,
            (*inputs, out, *sizes),
            constants,
            target=target,
            options=OPTIONS,
            transform=lambda _: text,
        )
        return torch.allclose(out.double(), want, atol=atol, rtol=1e-3)

    args = (*inputs, out, *sizes)
    compiled, _, _ = compile_triton(kernel, args, constants, target, num_warps=4, num_stages=3)
    return compiled.asm["ptx"], check


def matmul(target: int):
    M, N, K = 70, 80, 112

    def padded(rows: int, columns: int) -> torch.Tensor:
        whole = torch.full((rows, columns + 16), float("nan"), dtype=torch.bfloat16)
        whole[:, :columns] = torch.randn(rows, columns).bfloat16()
        return whole[:, :columns]

    a, b, out = padded(M, K), padded(K, N), torch.empty(M, N)
    sizes = (M, N, K, K + 16, N + 16, N)
    constants = {"BM": 64, "BN": 64, "BK": 32, "PRECISION": "ieee"}
    want = a.double() @ b.double()
    return subject(kernels.matmul, (2, 2), (a, b), out, sizes, constants, target, want, 1e-3)


def softmax(target: int):
    x = torch.randn(4, 500)
    want = x.double().softmax(1)
    return subject(
        kernels.softmax,
        (4,),
        (x,),
        torch.empty(4, 500),
        (500, 500),
        {"BLOCK": 512},
        target,
        want,
        1e-6,
    )


def test_mutants_are_seeded_and_small():
    text, _ = softmax(80)
    first, again = mutate.mutants(text, seed=1), mutate.mutants(text, seed=1)
    assert first == again
    assert first != mutate.mutants(text, seed=2)
    for mutant in first:
        lines, changed = text.split("\n"), mutant.text.split("\n")
        assert len(lines) == len(changed)
        assert sum(x != y for x, y in zip(lines, changed, strict=True)) == 1


# Many mutants change nothing: masks that always hold, waits and barriers whose neighbours do the
# same, a maximum that softmax does not depend on. So a share, and the survivors in print.
@pytest.mark.parametrize(
    ("make", "target", "least"), [(matmul, 80, 0.6), (matmul, 90, 0.75), (softmax, 80, 0.75)]
)
def test_most_mutants_are_caught(make, target, least):
    text, check = make(target)
    report = mutate.survivors(text, check, mutate.mutants(text, seed=0, per_kind=2))
    print(f"\n{make.__name__} sm_{target}: {report}")
    assert len(report.caught) > 12
    assert report.share >= least


WGMMA = ["drop wgmma wait", "drop wgmma fence", "drop proxy fence", "drop copy wait"]


@pytest.mark.parametrize(
    ("make", "target", "kinds", "redundant"),
    [
        (softmax, 80, ["drop barrier", "shuffle mask"], 0),
        (matmul, 90, WGMMA, 0),
        # The one between the first two copies, which go to different buffers, orders nothing.
        (matmul, 90, ["drop barrier"], 1),
    ],
)
def test_missing_synchronisation_is_always_caught(make, target, kinds, redundant):
    text, check = make(target)
    report = mutate.survivors(text, check, mutate.sites(text, kinds))
    assert len(report.caught) > 2
    assert len(report.survived) == redundant, str(report)


def test_a_failing_original_is_refused():
    with pytest.raises(AssertionError, match="unchanged"):
        mutate.survivors("", lambda text: False, [])
