"""Selection by the CUDA kernels against the reference, bit for bit, through every path."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import reference
from python_tests.oracle import (
    STYLES,
    as_bits,
    hostile,
    same_bits,
    selectable,
    top_m_by_sorting,
)

from .emulator import SMALL

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# A warp a row: every number of registers, ragged and full, odd rows; a block a row: 256 threads.
SHAPES = [(5, 1), (3, 7), (4, 128), (2, 129), (2, 250), (1, 512), (3, 513), (1, 1024), (2, 1025),
          (1, 3000)]  # fmt: skip


def counts(p: int) -> set[int]:
    return {0, 1, p // 3, p - 1, p}


def check(ops, u, m):
    """Of u and of max(u, 0)."""
    for positive in (False, True):
        values, indices = ops.top_m(u, m, positive)
        at, bits = reference.top_m(u, m, positive)[1], selectable(u, positive)
        assert torch.equal(indices, at)
        assert torch.equal(as_bits(values), bits.gather(-1, at))
        dense, mask = ops.keep_top_m(u, m, positive)
        kept = torch.zeros(u.shape, dtype=torch.bool).scatter(-1, at, True)
        assert torch.equal(mask, reference.keep_top_m(u, m, positive)[1])
        assert torch.equal(as_bits(dense), bits * kept)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(ops, shape):
    for m in sorted(counts(shape[1])):
        check(ops, hostile(shape, torch.float32, m, "few_special"), m)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_rows(ops, dtype, style):
    for shape, m in (((3, 77), 20), ((2, 600), 31), ((1, 1300), 400)):
        check(ops, hostile(shape, dtype, 5, style), m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_an_oracle_of_its_own(ops, dtype):
    u = hostile((6, 40), dtype, 11, "special")
    _, indices = ops.top_m(u, 9, False)
    assert indices.tolist() == [top_m_by_sorting(row.tolist(), 9) for row in u]


@pytest.mark.parametrize("p", [70, 1500])
def test_equal_leading_bits(ops, p):
    """Keys that differ in the last bits only, and in the first only: every digit has to decide."""
    low = (torch.full((2, p), 0x3F800000, dtype=torch.int32) + torch.arange(p) * 7 % 11).int()
    high = (torch.arange(p) * 37 % 255).int().expand(2, p) << 23
    for image in (low, high):
        for m in (1, p // 2, p - 2):
            check(ops, image.view(torch.float32), m)


@pytest.mark.parametrize("groups", [32, 64, 128])
@pytest.mark.parametrize("p", [100, 256, 400, 512, 1000, 1024])
def test_one_large_entry_in_each_group_of_a_lane(ops, p, groups):
    """A warp begins its bisection at the smallest maximum of 32, 64 or 128 groups of keys. These
    rows have one large entry in each: that many keys reach it, and not one more."""
    g = torch.Generator().manual_seed(p)
    for dtype in DTYPES:
        pack = 16 // dtype.itemsize
        at = torch.arange(p)
        # A lane has packs 32 apart; its groups are the entries i with i % 4 = 0, 1, 2, 3.
        group = at // pack % 32 * (groups // 32) + at % 4 * (groups // 32) // 4
        first = torch.randperm(p, generator=g)
        large = torch.stack([first[group[first] == i][0] for i in group.unique()])
        u = torch.rand(3, p, generator=g).sub(0.5).to(dtype)
        u[1], u[2] = 0.25, torch.arange(p) / 4096  # equal, and ascending
        u[:, large] = (4 + torch.rand(3, len(large), generator=g)).to(dtype)
        for m in (len(large) - 1, len(large), len(large) + 1):
            if m <= p:
                check(ops, u, m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [300, 512, 1000])
def test_most_of_a_row_by_a_warp(ops, p, dtype):
    """Counts of kept entries stand side by side in a word: up to 256 of a pack over the lanes."""
    half = torch.ones(2, p, dtype=dtype)
    half[0, :256], half[1, -256:] = -2.0, 2.0
    for m in (255, 256, 257, p - 1):
        for u in (half, hostile((2, p), dtype, m, "normal"), hostile((1, p), dtype, m, "ties")):
            check(ops, u, m)


@pytest.mark.parametrize("p", [100, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_and_alignment(ops, p, dtype):
    memory = hostile((4, p + 13), dtype, 2, "ties")
    for u in (memory[:, 3 : p + 3], memory[::2, :p], memory[:1].expand(3, -1)[:, :p],
              memory[:, ::2][:, : p // 2], memory.reshape(2, 2, -1)[..., 1:p]):  # fmt: skip
        check(ops, u, 17)


def test_many_rows_share_no_state(ops, emulator):
    u = hostile((9, 1030), torch.float32, 1, "normal")
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    check(ops, u, 33)
    one_by_one = [ops.top_m(u[r : r + 1], 33, False) for r in range(9)]
    values, indices = ops.top_m(u, 33, False)
    assert same_bits(values, torch.cat([v for v, _ in one_by_one]))
    assert torch.equal(indices, torch.cat([i for _, i in one_by_one]))


@pytest.mark.parametrize(
    ("dtype", "style"),
    [(torch.float32, "few_special"), (torch.float32, "ties"), (torch.float16, "few_special"),
     (torch.bfloat16, "equal")],
    ids=str,
)  # fmt: skip
def test_long_rows(ops, emulator, dtype, style):
    """On a device with little shared memory: rows in segments, and rows that are streamed."""
    emulator.set_device(*SMALL)
    # A row that fits has 3984 or 7984 entries; a segment at least 4 m, and 32 m where that fits.
    p, blocks = (9001, (3, 3, 1)) if dtype == torch.float32 else (17003, (5, 3, 1))
    for m, first_blocks in zip((40, 900, p // 2), blocks, strict=True):
        emulator.launches.clear()
        u = hostile((1, p), dtype, m, style)
        values, indices = ops.top_m(u, m, False)
        at = reference.top_m(u, m)[1]
        assert torch.equal(indices, at)
        assert torch.equal(as_bits(values), as_bits(u).gather(-1, at))
        assert emulator.launches[0].grid == first_blocks
        assert (emulator.launches[0].shared == 0) == (first_blocks == 1)
    check(ops, hostile((2, p), dtype, 3, style)[:, 1:], 55)


def test_candidates_are_cut_again_where_they_are_long(ops, emulator):
    emulator.set_device(132, 17500)  # a row that fits has 512 entries
    for style in ("normal", "close"):  # winners of all parts, and of the first
        u = hostile((2, 9000), torch.float32, 4, style)
        for positive in (False, True):
            emulator.launches.clear()
            values, indices = ops.top_m(u, 100, positive)
            at = reference.top_m(u, 100, positive)[1]
            assert torch.equal(indices, at)
            assert torch.equal(as_bits(values), selectable(u, positive).gather(1, at))
            assert [n.grid for n in emulator.launches] == [36, 8, 2]


def test_few_long_rows_fill_the_device(ops, emulator):
    u = hostile((1, 16400), torch.float32, 4, "normal")
    indices = ops.top_m(u, 10, False)[1]
    assert torch.equal(indices, reference.top_m(u, 10)[1])
    assert [n.grid for n in emulator.launches] == [5, 1]


def test_unpool_and_apply_mask(ops):
    for dtype in DTYPES:
        u = hostile((3, 2, 45), dtype, 8, "special")
        values, indices = ops.top_m(u, 7, False)
        order = torch.randperm(7)
        out = ops.unpool(values[..., order], indices[..., order], 45)
        assert same_bits(out, ops.keep_top_m(u, 7, False)[0])
        mask = ops.keep_top_m(u, 7, False)[1]
        assert same_bits(ops.apply_mask(u, mask), out)
        assert same_bits(ops.apply_mask(u[..., 1:41].contiguous()[..., :40], mask[..., :5]),
                         reference.apply_mask(u[..., 1:41], mask[..., :5]))  # fmt: skip


@pytest.mark.parametrize("bad", [-1, 45, 1 << 40])
def test_an_index_out_of_range_is_an_error_with_the_kernels_name(ops, bad):
    values, indices = torch.ones(2, 3), torch.tensor([[0, 1, 2], [3, bad, 5]])
    with pytest.raises(RuntimeError, match=r"unpool_kernel.*[Tt]rap"):
        ops.unpool(values, indices, 45)


def test_refusals(ops):
    u = torch.randn(2, 5)
    with pytest.raises(RuntimeError, match="m must be >= 0 and <= p = 5, got 6"):
        ops.top_m(u, 6, False)
    with pytest.raises(RuntimeError, match="u must be float32, float16 or bfloat16"):
        ops.top_m(u.double(), 2, False)
    with pytest.raises(RuntimeError, match="mask must be uint8 of shape"):
        ops.apply_mask(u, torch.zeros(2, 2, dtype=torch.uint8))
    for shape in ((0, 5), (2, 0, 5)):
        values, indices = ops.top_m(torch.empty(shape), 2, False)
        assert values.shape == indices.shape == (*shape[:-1], 2)
    assert ops.keep_top_m(torch.empty(3, 0), 0, False)[1].shape == (3, 0)
