"""The factored M-sparse encoder of the CUDA floor against the reference."""

from __future__ import annotations

import pytest
import torch

from python_tests.triton.test_encode_factored import CASES, check_top_m, operands
from python_tests.triton.test_stage import on

from .recording import recording

OPS = torch.ops.deepl0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_m_sparse(device, case):
    check_top_m(device, case, case[0] == 5)


def test_the_other_layouts(device):
    for case in CASES[1:3]:
        check_top_m(device, case, False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(device, dtype):
    check_top_m(device, CASES[1], False, dtype)


def test_blocks_of_rows(device, force):
    given = on(device, *operands(7, 4, 30, 2, True, False))
    whole = OPS.encode_top_m_factored_saving(*given, [5, 6], True)
    force("rules", 3 * 30)
    parts = OPS.encode_top_m_factored_saving(*given, [5, 6], True)
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_can_be_captured(emulator, dtype):
    """At the size of a large dictionary nothing is read back, and no float is added in no order."""
    batch, n, p, m = 4096, 256, 131072, [64, 32, 32]
    x, W, D = (
        torch.empty(s, dtype=dtype, device="meta", requires_grad=True)
        for s in ((batch, n), (p, n), (n, p))
    )
    with recording(emulator) as launches:
        values = OPS.encode_top_m_factored(x, W, D, None, None, m, True)[0]
        torch.autograd.grad(values, (x, W, D), torch.empty_like(values))
    assert {"gather_rows_kernel", "top_m_block_kernel", "combine_kernel", "row_dots_kernel"} <= {
        n.kernel for n in launches
    }
