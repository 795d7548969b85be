"""Every check fires on a bad kernel, names the place, and is silent on its good twin."""

from __future__ import annotations

import numpy as np
import pytest

from .errors import (
    AsyncCopyError,
    BarrierError,
    DeviceTrapError,
    MisalignedError,
    OutOfBoundsError,
    ParseError,
    RaceError,
    StepLimitError,
    UninitializedError,
    UnknownInstructionError,
    WarpSyncError,
    WgmmaError,
)
from .layout import Options
from .support import execute

# %rd20: this thread's word of the first argument; %r20: its word of shared memory.
PLACE = """mul.wide.u32 %rd10, %r0, 4; add.s64 %rd20, %rd0, %rd10;
mov.u32 %r10, tile; shl.b32 %r11, %r0, 2; add.s32 %r20, %r10, %r11; xor.b32 %r12, %r0, 32;
shl.b32 %r13, %r12, 2; add.s32 %r21, %r10, %r13;
"""
TILE = ".shared .align 16 .b8 tile[1024];"


def words(count: int = 64) -> np.ndarray:
    return np.zeros(count, "i4")


def run(body: str, *arrays: np.ndarray, **more) -> None:
    execute(PLACE + body, *(arrays or (words(),)), declarations=TILE, **more)


# name: (error, words its message must hold, bad body, good body)
PAIRS = {
    "global bounds": (
        OutOfBoundsError,
        ["st.global.u32", "argument 0 has 256 bytes", "offset 256", "thread 63", "PTX line"],
        "st.global.u32 [%rd20+4], %r0;",
        "setp.lt.u32 %p1, %r0, 63; @%p1 st.global.u32 [%rd20+4], %r0;",
    ),
    "global bounds below": (
        OutOfBoundsError,
        ["thread 0"],
        "ld.global.u32 %r1, [%rd20+-4];",
        "setp.ne.u32 %p1, %r0, 0; @%p1 ld.global.u32 %r1, [%rd20+-4];",
    ),
    "vector crosses the end": (
        OutOfBoundsError,
        ["8 bytes"],
        "ld.global.v2.u32 {%r1, %r2}, [%rd0+256];",
        "ld.global.v2.u32 {%r1, %r2}, [%rd0+248];",
    ),
    "null pointer": (
        OutOfBoundsError,
        ["0x10"],
        "mov.u64 %rd11, 16; ld.global.u32 %r1, [%rd11];",
        "mov.u64 %rd11, %rd0; ld.global.u32 %r1, [%rd11];",
    ),
    "global alignment": (
        MisalignedError,
        ["16 bytes", "thread 0"],
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+8];",
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0+16];",
    ),
    "shared bounds": (
        OutOfBoundsError,
        ["shared access", "offset 1024 of 1024"],
        "st.shared.u32 [%r20+772], %r0;",
        "st.shared.u32 [%r20+768], %r0;",
    ),
    "shared alignment": (
        MisalignedError,
        ["shared access of 8 bytes"],
        "st.shared.v2.u32 [%r20], {%r0, %r0};",
        "shl.b32 %r14, %r0, 3; add.u32 %r15, %r10, %r14; st.shared.v2.u32 [%r15], {%r0, %r0};",
    ),
    "shared never written": (
        UninitializedError,
        ["shared memory never written"],
        "ld.shared.u32 %r1, [%r20];",
        "st.shared.u32 [%r20], %r0; ld.shared.u32 %r1, [%r20];",
    ),
    "register never written": (
        UninitializedError,
        ["%r1", "thread 10"],
        "setp.lt.u32 %p1, %r0, 10; @%p1 mov.u32 %r1, 5; st.global.u32 [%rd20], %r1;",
        "setp.lt.u32 %p1, %r0, 10; @%p1 mov.u32 %r1, 5; @%p1 st.global.u32 [%rd20], %r1;",
    ),
    "read after write": (
        RaceError,
        ["a read after a write by warp 1", "thread 0 (warp 0)"],
        "st.shared.u32 [%r20], %r0; ld.shared.u32 %r1, [%r21];",
        "st.shared.u32 [%r20], %r0; bar.sync 0; ld.shared.u32 %r1, [%r21];",
    ),
    "write after read": (
        RaceError,
        ["a write after a read"],
        "st.shared.u32 [%r20], %r0; bar.sync 0; ld.shared.u32 %r1, [%r21];"
        "st.shared.u32 [%r20], %r1;",
        "st.shared.u32 [%r20], %r0; bar.sync 0; ld.shared.u32 %r1, [%r21];"
        "bar.sync 0; st.shared.u32 [%r20], %r1;",
    ),
    "write after write": (
        RaceError,
        ["a write after a write"],
        "st.shared.u32 [%r20], %r0; st.shared.u32 [%r21], %r0;",
        "st.shared.u32 [%r20], %r0; bar.sync 0; st.shared.u32 [%r21], %r0;",
    ),
    "two values in one store": (
        RaceError,
        ["one address, two values"],
        "st.shared.u32 [%r10], %r0;",
        "mov.u32 %r1, 7; st.shared.u32 [%r10], %r1;",
    ),
    "bytes of one word": (
        RaceError,
        ["a read after a write"],
        "add.u32 %r14, %r10, %r0; st.shared.u8 [%r14], %r0; ld.shared.u8 %r1, [%r10+40];",
        "add.u32 %r14, %r10, %r0; st.shared.u8 [%r14], %r0; ld.shared.u8 %r1, [%r14];",
    ),
    "global memory in a block": (
        RaceError,
        ["global memory (argument 0)", "a read after a write"],
        "st.global.u32 [%rd20], %r0; xor.b32 %r1, %r0, 32; mul.wide.u32 %rd11, %r1, 4;"
        "add.s64 %rd12, %rd0, %rd11; ld.global.u32 %r2, [%rd12];",
        "st.global.u32 [%rd20], %r0; xor.b32 %r1, %r0, 32; mul.wide.u32 %rd11, %r1, 4;"
        "add.s64 %rd12, %rd0, %rd11; bar.sync 0; ld.global.u32 %r2, [%rd12];",
    ),
    "global write after read": (
        RaceError,
        ["a write after a read"],
        "xor.b32 %r1, %r0, 32; mul.wide.u32 %rd11, %r1, 4; add.s64 %rd12, %rd0, %rd11;"
        "ld.global.u32 %r2, [%rd12]; st.global.u32 [%rd20], %r2;",
        "xor.b32 %r1, %r0, 32; mul.wide.u32 %rd11, %r1, 4; add.s64 %rd12, %rd0, %rd11;"
        "ld.global.u32 %r2, [%rd12]; bar.sync 0; st.global.u32 [%rd20], %r2;",
    ),
    "atomic and plain": (
        RaceError,
        ["a read after an atomic"],
        "mov.u32 %r1, 0; st.shared.u32 [%r10], %r1; bar.sync 0;"
        "atom.shared.add.u32 %r2, [%r10], 1; ld.shared.u32 %r3, [%r10];",
        "mov.u32 %r1, 0; st.shared.u32 [%r10], %r1; bar.sync 0;"
        "atom.shared.add.u32 %r2, [%r10], 1; bar.sync 0; ld.shared.u32 %r3, [%r10];",
    ),
    "barrier after an exit": (
        BarrierError,
        ["divergent barrier", "32 threads have exited"],
        "setp.ge.u32 %p1, %r0, 32; @%p1 ret; bar.sync 0;",
        "setp.ge.u32 %p1, %r0, 32; bar.sync 0; @%p1 ret;",
    ),
    "barrier in a branch": (
        BarrierError,
        ["10 of 32 lanes of warp 0"],
        "setp.ge.u32 %p1, %r0, 10; @%p1 bra SKIP; bar.sync 0; SKIP: mov.u32 %r1, 0;",
        "setp.ge.u32 %p1, %r0, 10; @%p1 bra SKIP; mov.u32 %r1, 1; SKIP: bar.sync 0;",
    ),
    "different barriers": (
        BarrierError,
        ["32 at barrier 1, 32 at barrier 2"],
        "setp.ge.u32 %p1, %r0, 32; @%p1 bra ELSE; bar.sync 1; bra END; ELSE: bar.sync 2; END:",
        "setp.ge.u32 %p1, %r0, 32; @%p1 bra ELSE; bar.sync 1, 32; bra END;"
        "ELSE: bar.sync 2, 32; END:",
    ),
    "shuffle without its lanes": (
        WarpSyncError,
        ["0xffffffff", "names lanes that did not arrive", "arrived: 0x000003ff"],
        "setp.lt.u32 %p1, %r0, 10; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;",
        "setp.lt.u32 %p1, %r0, 10; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, 1023;",
    ),
    "shuffle from outside the mask": (
        WarpSyncError,
        ["reads lane 20"],
        "setp.lt.u32 %p1, %r0, 10; @%p1 shfl.sync.idx.b32 %r1, %r0, 20, 31, 1023;",
        "setp.lt.u32 %p1, %r0, 10; @%p1 shfl.sync.idx.b32 %r1, %r0, 9, 31, 1023;",
    ),
    "ballot by a lane not in its mask": (
        WarpSyncError,
        ["not in its member mask"],
        "setp.lt.u32 %p1, %r0, 10; vote.sync.ballot.b32 %r1, %p1, 65535;",
        "setp.lt.u32 %p1, %r0, 10; vote.sync.ballot.b32 %r1, %p1, -1;",
    ),
    "warp barrier": (
        WarpSyncError,
        ["bar.warp.sync"],
        "setp.lt.u32 %p1, %r0, 10; @%p1 bra IN; bra OUT; IN: bar.warp.sync -1; OUT:",
        "setp.lt.u32 %p1, %r0, 10; @%p1 bra IN; bra OUT; IN: mov.u32 %r1, 0; OUT:bar.warp.sync -1;",
    ),
    "copy not waited for": (
        AsyncCopyError,
        ["a cp.async", "has not been waited for"],
        "cp.async.ca.shared.global [%r20], [%rd20], 4; cp.async.commit_group;"
        "cp.async.wait_group 1; ld.shared.u32 %r1, [%r20];",
        "cp.async.ca.shared.global [%r20], [%rd20], 4; cp.async.commit_group;"
        "cp.async.wait_group 0; ld.shared.u32 %r1, [%r20];",
    ),
    "copy not committed": (
        AsyncCopyError,
        ["a cp.async"],
        "cp.async.ca.shared.global [%r20], [%rd20], 4;"
        "cp.async.wait_group 0; ld.shared.u32 %r1, [%r20];",
        "cp.async.ca.shared.global [%r20], [%rd20], 4;"
        "cp.async.wait_all; ld.shared.u32 %r1, [%r20];",
    ),
    "copy without a barrier": (
        RaceError,
        ["a read after a write by warp 1"],
        "cp.async.ca.shared.global [%r20], [%rd20], 4; bar.sync 0;"
        "cp.async.wait_all; ld.shared.u32 %r1, [%r21];",
        "cp.async.ca.shared.global [%r20], [%rd20], 4;"
        "cp.async.wait_all; bar.sync 0; ld.shared.u32 %r1, [%r21];",
    ),
    "copy from beyond the end": (
        OutOfBoundsError,
        ["thread 63"],
        "cp.async.ca.shared.global [%r20], [%rd20+4], 4; cp.async.wait_all;",
        "setp.lt.u32 %p1, %r0, 63; selp.b32 %r1, 4, 0, %p1;"
        "cp.async.ca.shared.global [%r20], [%rd20+4], 4, %r1; cp.async.wait_all;",
    ),
    "trap": (
        DeviceTrapError,
        ["trap", "thread 5"],
        "setp.eq.u32 %p1, %r0, 5; @%p1 trap;",
        "setp.eq.u32 %p1, %r0, 500; @%p1 trap;",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_fires_and_stays_silent(name):
    error, fragments, bad, good = PAIRS[name]
    run(good)
    with pytest.raises(error) as caught:
        run(bad)
    for fragment in [*fragments, "block (0, 0, 0)"]:
        assert fragment in str(caught.value), f"{fragment!r} not in {caught.value}"


def test_memory_outside_a_view_is_out_of_bounds():
    """Bounds are those of the argument, not of the allocation behind it."""
    whole = words(128)
    run("st.global.u32 [%rd20], %r0;", whole[32:96])
    assert not whole[:32].any()
    assert not whole[96:].any()
    with pytest.raises(OutOfBoundsError):
        run("st.global.u32 [%rd20+4], %r0;", whole[32:96])


def test_two_views_of_one_allocation_keep_their_distance():
    whole = words(128)
    body = "sub.s64 %rd12, %rd1, %rd0; cvt.u32.u64 %r1, %rd12; st.global.u32 [%rd20], %r1;"
    run(body, whole[:64], whole[64:])
    assert (whole[:64] == 256).all()


def test_blocks_may_not_use_each_others_results():
    body = """mov.u32 %r1, %ctaid.x; mul.wide.u32 %rd11, %r1, 256; add.s64 %rd12, %rd20, %rd11;
    st.global.u32 [%rd12], %r0; """
    run(body, words(128), grid=2)
    with pytest.raises(RaceError, match=r"what block 0 \(linear\) wrote.*block \(1, 0, 0\)"):
        run(body + "ld.global.u32 %r2, [%rd20];", words(128), grid=2)
    run(
        body + "ld.global.u32 %r2, [%rd20];",
        words(128),
        grid=2,
        options=Options(cross_block=False),
    )
    with pytest.raises(RaceError):
        run("st.global.u32 [%rd20], %r0;", words(), grid=2)


def test_atomics_of_blocks_do_not_race():
    total = words(1)
    execute("red.global.add.u32 [%rd0], 1;", total, grid=3)
    assert total[0] == 192


def test_endless_loops_end():
    with pytest.raises(StepLimitError, match="1000 instructions"):
        run("AGAIN: add.u32 %r0, %r0, 0; bra AGAIN;", options=Options(max_steps=1000))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.b32 %r1, %r0;", "unknown instruction frobnicate.b32"),
        ("add.weird.s32 %r1, %r0, %r0;", "unknown modifier .weird"),
        ("mov.u32 %r1, %nonsense;", "%nonsense"),
        ("tcgen05.alloc.b32 [%r1], 32;", "unknown instruction tcgen05"),
    ],
)
def test_what_it_does_not_know_it_says(body, message):
    with pytest.raises(UnknownInstructionError, match=message.replace("+", r"\+")):
        run(body)


def test_nonsense_does_not_parse():
    with pytest.raises(ParseError):
        run("mov.u32 %r1, [[;")


def test_partial_warps_and_three_dimensional_blocks():
    out = words(60)
    execute(
        """mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mad.lo.u32 %r3, %r1, 5, %r0;
        mad.lo.u32 %r3, %r2, 15, %r3; mul.wide.u32 %rd10, %r3, 4; add.s64 %rd11, %rd0, %rd10;
        bar.sync 0; st.global.u32 [%rd11], %r3;""",
        out,
        threads=(5, 3, 4),
    )
    assert (out == np.arange(60)).all()


# --- wgmma --------------------------------------------------------------------------------------

_ACC = ", ".join(f"%f{i}" for i in range(4))
# A 64 x 16 and an 8 x 16 operand of bf16 ones, without swizzling: core matrices of 128 bytes,
# neighbours in K 128 bytes apart (leading), in M or N 256 bytes (stride).
_PREPARE = """mov.u32 %r10, tile; mov.u32 %r1, 0x3f803f80; shl.b32 %r2, %r0, 4;
add.u32 %r3, %r10, %r2;
st.shared.v4.u32 [%r3], {%r1, %r1, %r1, %r1}; st.shared.v4.u32 [%r3+2048], {%r1, %r1, %r1, %r1};
FENCE bar.sync 0; mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
shr.u32 %r4, %r10, 4; cvt.u64.u32 %rd10, %r4; or.b64 %rd11, %rd10, 0x1000080000;
add.s64 %rd12, %rd11, 64; REGISTERS
"""
_MULTIPLY = f"""wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16
{{{_ACC}}}, %rd11, %rd12, 1, 1, 1, 0, 0;
"""
_FINISH = """wgmma.commit_group.sync.aligned; WAIT
mul.wide.u32 %rd13, %r0, 16; add.s64 %rd14, %rd0, %rd13;
st.global.v4.f32 [%rd14], {%f0, %f1, %f2, %f3};
"""


def _wgmma(fence="fence.proxy.async;", registers="wgmma.fence.sync.aligned;",
           wait="wgmma.wait_group.sync.aligned 0;", extra="") -> np.ndarray:  # fmt: skip
    out = np.zeros(512, "f4")
    text = _PREPARE + _MULTIPLY + extra + _FINISH
    for key, value in {"FENCE": fence, "REGISTERS": registers, "WAIT": wait}.items():
        text = text.replace(key, value)
    execute(text, out, threads=128, declarations=".shared .align 1024 .b8 tile[4096];",
            target="sm_90a")  # fmt: skip
    return out


def test_wgmma_needs_its_fences_and_waits():
    assert (_wgmma() == 17).all()
    with pytest.raises(WgmmaError, match=r"fence\.proxy\.async"):
        _wgmma(fence="")
    with pytest.raises(WgmmaError, match=r"without a wgmma\.fence"):
        _wgmma(registers="")
    with pytest.raises(WgmmaError, match=r"before wgmma\.wait_group"):
        _wgmma(wait="")
    with pytest.raises(WgmmaError, match=r"before wgmma\.wait_group"):
        _wgmma(wait="wgmma.wait_group.sync.aligned 1;")
    with pytest.raises(WgmmaError, match="while a wgmma"):
        _wgmma(extra="st.shared.u32 [%r3], %r1;")
