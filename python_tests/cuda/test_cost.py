"""The cost model of the CUDA kernels, and what it counts."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import triton as triton_kernels
from python_tests.ptx.machine import Machine

from . import cost, cost_page
from .budget import all_usage
from .recording import parameters

if not triton_kernels.installed():
    pytest.skip("the page compares CUDA and Triton", allow_module_level=True)

CASES = list(cost_page.cases())


def issued(call) -> int:
    """Instructions of warps that the kernels of a call execute."""
    before = Machine.issued
    call()
    return Machine.issued - before


def test_every_kernel_has_a_formula(emulator):
    assert set(cost.FORMULAS) == set(parameters()) | {"memset"}
    assert set(parameters()) == {u.kernel for u in all_usage()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("items", [4, 8, 16, 32])
def test_counted_instructions_of_warps(ops, items, dtype):
    p, e = 32 * items, dtype.itemsize
    if (e, items, False) not in cost.WARP_SELECT:
        assert (e, items) == (2, 4)  # half types begin with eight
        return
    u = torch.randn(8, p).to(dtype)
    for dense, call in ((False, ops.top_m), (True, ops.keep_top_m)):
        counted = issued(lambda call=call: call(u, p // 16)) / 8
        assert counted == pytest.approx(cost.WARP_SELECT[e, items, dense], rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [2048, 8192])
def test_counted_instructions_of_blocks(ops, p, dtype):
    u = torch.randn(1, p).to(dtype)
    for dense, call in ((False, ops.top_m), (True, ops.keep_top_m)):
        counted = cost.ISSUE * issued(lambda call=call: call(u, 32))
        assert counted == pytest.approx(cost.block_select(p, 1, 256, dense), rel=0.25)


def test_bytes_of_selection_are_within_their_bound(emulator):
    """1.15 of one read of the row and one write of the result, where a row fits or m is small."""
    for case in CASES:
        if case.operator in ("top_m", "keep_top_m"):
            found = cost_page.steps_of(case, cost.H100, emulator)
            moved = sum(s.prediction.dram for s in found)
            assert moved <= 1.15 * case.bytes, case


def test_no_prediction_beats_a_roof(emulator):
    for case in CASES:
        steps = cost_page.steps_of(case, cost.H100, emulator)
        assert cost_page.seconds(steps) > case.bytes / cost.H100.dram, case
        assert all(s.prediction.seconds >= cost.H100.launch for s in steps)


def test_the_choice_is_that_of_the_record():
    """What ``backends.choose`` takes is nowhere slower than Triton's kernels by more than a quarter
    and 4 us, as measured on a GPU."""
    found = cost_page.measured()
    both = [key[:2] for key in found if key[2] == "triton"]
    assert len(both) > 50
    for operator, shape in both:
        mine, other = (found[operator, shape, floor] for floor in ("cuda", "triton"))
        assert mine <= 1.25 * other + 4, (operator, shape, mine, other)


def test_the_committed_page_is_the_model(emulator):
    assert cost_page.DOCUMENT.read_text() == cost_page.page(emulator), (
        "python -m python_tests.cuda.cost_page --write"
    )
