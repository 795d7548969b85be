"""What selection executes and moves, counted by running the PTX: it is bound by both."""

from __future__ import annotations

import pytest
import torch

from python_tests.oracle import hostile
from python_tests.ptx.machine import Machine
from python_tests.ptx.memory import GlobalMemory

# Instructions of a warp a row, (bytes of an element, items a lane, dense) -> count for a row of
# 32 x items normal entries and m = p / 16.
WARP_SELECT = {
    (4, 4, False): 328, (4, 8, False): 507, (4, 16, False): 899, (4, 32, False): 1832,
    (4, 4, True): 302, (4, 8, True): 449, (4, 16, True): 799, (4, 32, True): 1620,
    (2, 8, False): 482, (2, 16, False): 892, (2, 32, False): 1797,
    (2, 8, True): 424, (2, 16, True): 797, (2, 32, True): 1570,
}  # fmt: skip
# Of a block of 8 warps, two digits: a warp's own, and every 32 entries.
BLOCK_SELECT = {False: (600, 50), True: (560, 60)}


def counted(call) -> tuple[int, int]:
    """Instructions of warps that the kernels of a call execute, and bytes they read and write."""
    before = Machine.issued, GlobalMemory.moved
    call()
    return Machine.issued - before[0], GlobalMemory.moved - before[1]


@pytest.mark.parametrize(("element", "items", "dense"), WARP_SELECT)
def test_instructions_of_warps(ops, element, items, dense):
    p = 32 * items
    u = torch.randn(8, p).to(torch.float32 if element == 4 else torch.bfloat16)
    issued, _ = counted(lambda: (ops.keep_top_m if dense else ops.top_m)(u, p // 16, False))
    assert issued / 8 == pytest.approx(WARP_SELECT[element, items, dense], rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [2048, 8192])
def test_instructions_of_blocks(ops, p, dtype):
    u = torch.randn(1, p).to(dtype)
    for dense, (own, every) in BLOCK_SELECT.items():
        select = ops.keep_top_m if dense else ops.top_m
        issued, _ = counted(lambda select=select: select(u, 32, False))
        assert issued == pytest.approx(8 * own + p / 32 * every, rel=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("style", ["normal", "equal"])
@pytest.mark.parametrize(("p", "m"), [(128, 8), (1000, 32), (1500, 32), (8192, 32), (16400, 10)])
def test_bytes(ops, p, m, style, dtype):
    """1.15 of one read of the row and one write of the result, whatever the row: by a warp, by a
    block, and by segments, whose m is small."""
    u, e = hostile((1, p), dtype, m, style), dtype.itemsize
    code, dense = m * (e + 8), p * e + (p + 7) // 8
    assert counted(lambda: ops.top_m(u, m, False))[1] <= 1.15 * (p * e + code)
    if p < 16384:  # a dense row of segments is written from its codes
        assert counted(lambda: ops.keep_top_m(u, m, False))[1] <= 1.15 * (p * e + dense)
