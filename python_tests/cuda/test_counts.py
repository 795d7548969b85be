"""What selection executes and moves, counted by running the PTX: it is bound by both."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.test_least_squares import system
from python_tests.oracle import hostile
from python_tests.ptx.machine import Machine
from python_tests.ptx.memory import GlobalMemory

from . import build, sass
from .emulator import BIG, SMALL, base_name, rows_read_once, stages_fused
from .test_omp import signals, unit

needs_cuobjdump = pytest.mark.skipif(
    build.toolkit() is None or sass.tool() is None, reason="nvcc or cuobjdump is missing"
)

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


# Rows that are read once, by a block, per entry: of normal numbers, m = 32; in half types more
# where there are ties.
ONCE = {
    (torch.float32, 4096): (39, 39), (torch.float32, 16384): (21, 25),
    (torch.bfloat16, 4096): (40, 38), (torch.bfloat16, 16384): (14, 15),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "p"), ONCE, ids=str)
def test_instructions_of_rows_read_once(ops, emulator, p, dtype):
    emulator.set_device(1, BIG[1])  # which one row fills
    u = torch.randn(1, p, generator=torch.Generator().manual_seed(p)).to(dtype)
    with rows_read_once():
        found = [
            counted(lambda f=f: f(u, 32, False))[0] * 32 / p for f in (ops.top_m, ops.keep_top_m)
        ]
    assert found == pytest.approx(ONCE[dtype, p], rel=0.25)


# A pursuit of 16 of 512 atoms, of signals of 256 entries: instructions a signal, bytes of D'D
# (and of D'x, which a nonnegative one reads for every atom).
PURSUIT = {
    "rows kept": (BIG, False, 22_800, 4 * 15 * 512),
    "rows of D'D": (SMALL, False, 24_600, 2 * 16 * 15 * 512),
    "nonnegative": (BIG, True, 37_000, 2 * 16 * 15 * 512 + 4 * 15 * 512),
}  # fmt: skip


@pytest.mark.parametrize("case", PURSUIT)
def test_a_pursuit(ops, emulator, case):
    device, positive, instructions, of_gram = PURSUIT[case]
    n, p, m = 256, 512, 16
    emulator.set_device(*device)
    x, D = signals(2, n, 1), unit(n, p, 1)
    issued, moved = counted(lambda: ops.omp(x, D, m, 1e-6, positive))
    print(f"{case}: {issued / 2:.0f} instructions, {moved / 2:.0f} bytes a signal")
    assert issued / 2 == pytest.approx(instructions, rel=0.25)
    assert moved / 2 == pytest.approx(of_gram + 4 * (n + p) + 16 * m, rel=0.1)


# Of a system of so many atoms: instructions of warps; where it starts again, as many atoms of which
# the last is one of the others.
SYSTEM = {16: (3_650, 8_540), 64: (32_100, 89_700), 128: (146_000, 391_000)}


@pytest.mark.parametrize("s", SYSTEM)
def test_least_squares(ops, s):
    gram, right, support = system(2 * s, 3 * s, s, 2)
    for again, instructions in zip((False, True), SYSTEM[s], strict=True):
        support[:, -1] = support[:, 0] if again else support[:, -1]
        issued, moved = counted(lambda: ops.least_squares(gram, right, support, 1e-5))
        print(f"{s}, again {again}: {issued / 2:.0f} instructions, {moved / 2:.0f} bytes")
        assert issued / 2 == pytest.approx(instructions, rel=0.25)
        assert moved / 2 == pytest.approx((1 + again) * 4 * s * s + 24 * s, rel=0.3)


@needs_cuobjdump
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_instructions_of_the_streaming_loop(arch):
    """Of machine code, an entry of a tile where nothing reaches the bar."""
    code = sass.machine_code("top_m_once", arch)
    assert len(code) == 8
    for (kernel, variant), listing in code.items():
        wide = variant.startswith("4 bytes")
        each = sass.streaming_loop(listing) / (16 if wide else 32)
        print(f"sm_{arch} {kernel} {variant}: {each:.2f}")
        assert each < (3 if wide else 1.5), variant


@needs_cuobjdump
@pytest.mark.parametrize("arch", ["80", "90", "100"])
@pytest.mark.parametrize(
    ("source", "kernel", "most"),
    [("screen", "screen_product_kernel", 80), ("threshold_stage", "threshold_stage_kernel", 95)],
)
def test_instructions_of_the_product_loop(source, kernel, most, arch):
    """Of machine code, a warp's step of 32 terms: 32 mma, 12 ldmatrix, 4 cp.async, few others."""
    listings = {k: v for k, v in sass.machine_code(source, arch).items() if k[0] == kernel}
    assert len(listings) == 2
    for (_, variant), listing in listings.items():
        loop = sass.loop_of(listing, "HMMA")
        print(f"sm_{arch} {kernel} {variant}: {len(loop)} of {len(listing)}")
        for name, count in (("HMMA", 32), ("LDSM", 12), ("LDGSTS", 4), ("BAR.SYNC", 1)):
            assert sum(name in text for text in loop) == count
        assert len(loop) <= most


# (n, stages, saving) -> instructions of a fused encoder of 128 rows and units.
FUSED = {
    (256, 1, False): 18_900, (256, 2, False): 42_100, (256, 2, True): 43_900,
    (264, 2, False): 36_600,
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_fused_stages(ops, case):
    """Bytes: an operand once a tile, z once, u where it is saved or W x is not multiplied again."""
    n, stages, save = case
    rows, p = 128, 128
    g = torch.Generator().manual_seed(0)
    x, W, S = (torch.randn(s, generator=g).to(torch.bfloat16) for s in ((rows, n), (p, n), (p, p)))
    encode = ops.encode_l0_saving if save else ops.encode_l0
    with stages_fused():
        issued, moved = counted(
            lambda: encode(
                x, W, S if stages > 1 else None, None, torch.ones(p), stages, 0.0, "helu"
            )
        )
    print(f"{case}: {issued} instructions, {moved} bytes")
    assert issued == pytest.approx(FUSED[case], rel=0.1)
    signal, code = 2 * (rows + p) * n, 2 * rows * p
    again = n <= 256
    want = signal + code + (stages - 1) * (again * signal + 2 * p * (rows + p) + code)
    want += 4 * rows * p * (stages * save + (stages - 1) * (not again) * (2 - save))
    assert moved == want + 8 * 4 * p * stages  # theta, by every warp


# (p, m) -> instructions of a screened row's selection; n = 256, normal numbers.
SCREENED = {(2048, 16): 6800, (4096, 32): 14700}


@pytest.mark.parametrize(("p", "m"), SCREENED)
def test_screened_rows(ops, emulator, p, m):
    """What a row's selection executes, and what a row moves: 8 bytes for every 16 units, 4 n for
    every candidate."""
    g = torch.Generator().manual_seed(0)
    x, W = torch.randn(1, 256, generator=g), torch.randn(p, 256, generator=g)
    found, execute = {}, emulator._execute

    def watch(job) -> None:
        issued, moved = counted(lambda: execute(job))
        found[base_name(job.kernel.decode())] = issued, moved

    emulator._execute = watch
    try:
        ops.screened_top_m(x, W, None, m, False)
    finally:
        del emulator._execute
    issued, moved = found["screen_select_kernel"]
    assert issued == pytest.approx(SCREENED[p, m], rel=0.25)
    tops = p / 2
    assert moved < 5 * (tops + p) + 4 * 256 * 3 * m
    tile = 128 * 256 * 2 * 2  # bytes of its operands
    assert found["screen_product_kernel"][1] == p / 128 * tile + tops


# A row of 131,072 entries in 8 slices, as 64 such rows are cut for 132 multiprocessors, m = 32:
# instructions an entry, bytes over the row's and the code's.
FEW = {torch.float32: (21.0, 1.009), torch.bfloat16: (15.2, 1.013)}


@pytest.mark.parametrize("dtype", FEW, ids=str)
def test_few_long_rows(ops, emulator, dtype):
    emulator.set_device(2, BIG[1])
    p, m, e = 131072, 32, dtype.itemsize
    u = torch.randn(1, p, generator=torch.Generator().manual_seed(p)).to(dtype)
    with rows_read_once():
        issued, moved = counted(lambda: ops.top_m(u, m, False))
    assert [n.grid for n in emulator.launches] == [8, 1]
    print(f"{dtype}: {issued * 32 / p:.1f} instructions, {moved / (p * e + m * (e + 8)):.3f} bytes")
    assert issued * 32 / p == pytest.approx(FEW[dtype][0], rel=0.25)
    assert moved / (p * e + m * (e + 8)) == pytest.approx(FEW[dtype][1], abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("style", ["normal", "equal"])
@pytest.mark.parametrize(("tiles", "m"), [(0.5, 32), (1, 32), (5.01, 42)])
def test_bytes_of_rows_read_once(ops, tiles, m, style, dtype):
    """1.02, whatever the row; with the candidates of short slices, 1.15."""
    e = dtype.itemsize
    p = int(tiles * 16384 / e)
    u, sliced = hostile((1, p), dtype, m, style), tiles > 5
    with rows_read_once():
        moved = counted(lambda: ops.top_m(u, m, False))[1]
        assert moved <= (1.15 if sliced else 1.02) * (p * e + m * (e + 8))
        if not sliced:
            moved = counted(lambda: ops.keep_top_m(u, m, False))[1]
            assert moved <= 1.02 * (2 * p * e + (p + 7) // 8)


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
