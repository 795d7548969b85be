"""Selection from rows that are read once: where the first tile misleads, what is collected
overflows, ties are many, packs are cut off. Results are those of the reference, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import deepl0_kernels as dk
from deepl0_kernels import reference
from python_tests.oracle import STYLES, as_bits, hostile, same_bits, selectable

from .emulator import SMALL, rows_read_once
from .recording import recording
from .test_top_m import check

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL = "top_m_once_kernel"
BUSY = (1, 232448)  # of one multiprocessor, which any number of rows fills


@pytest.fixture(autouse=True)
def once(ops) -> Iterator[None]:
    with rows_read_once():
        yield


def only_once(emulator) -> None:
    assert {launch.kernel for launch in emulator.launches} == {KERNEL}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_rows(ops, emulator, dtype, style):
    """One tile cut off on both sides; groups of 4 or 8 entries and of 16 or 32; two tiles."""
    first = 1301 if dtype == torch.float32 else 2303
    for shape, m in (((2, first), 20), ((1, 2309), 70), ((1, 9001), 31)):
        check(ops, hostile(shape, dtype, 5, style), m)
    only_once(emulator)


def special_rows(p: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(p, generator=g) - 0.5
    rising = u.abs().sort().values
    misleading, large_first, last = u.clone(), u.clone(), torch.full((p,), 0.25)
    misleading[4096:] *= 1000
    large_first[:4096] *= 1000
    last[-3:] = torch.tensor([0.5, float("nan"), -float("inf")])
    steps = (torch.arange(p) // 700).float()
    nans = u.clone()
    nans[torch.randperm(p, generator=g)[: p // 2]] = -float("nan")
    tiles = u.clone()
    tiles[torch.arange(p) // 8192 % 2 == 0] = 0.4  # ties before and after larger entries
    large = u * 2.0**124  # of bfloat16 the bits are NaN and inf as float16, on both sides of 2^121
    return {
        "rising": rising, "falling": rising.flip(0), "negative": -rising,
        "misleading": misleading, "large first": large_first, "last": last, "steps": steps,
        "back to front": steps.flip(0), "NaNs": nans, "infinite": torch.full((p,), float("inf")),
        "negative zeros": torch.full((p,), -0.0), "ties of tiles": tiles,
        "ReLU": (u - 0.49).relu(), "large": large, "large, falling": large.sort().values.flip(0),
    }  # fmt: skip


@pytest.mark.parametrize("name", special_rows(8, 0))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_where_the_first_tile_misleads(ops, emulator, dtype, name):
    """Rows of five and of three tiles: the bar is raised where what it let pass overflows."""
    emulator.set_device(*BUSY)
    p = 17001
    u = special_rows(p, 3)[name].to(dtype)[None]
    for m in (1, 40, 300):
        check(ops, u, m)
    only_once(emulator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_that_are_common(ops, emulator, dtype):
    """A bar that more threads reach than are needed goes up to an index as well: larger entries
    before and behind that, another alignment, m about the number of threads."""
    emulator.set_device(*BUSY)
    p = 9011
    u = torch.full((1, p), 0.5)
    u[0, [3, 5000, p - 1]] = torch.tensor([2.0, -3.0, float("nan")])
    sparse = torch.zeros(1, p)
    sparse[0, ::97] = torch.arange(len(range(0, p, 97))) * 1.0
    late = torch.zeros(1, p)
    late[0, 2000:] = -1.5  # the common key is not that of the first threads
    for rows in (u, sparse, late):
        for m in (1, 33, 95, 224, 225, 281):
            check(ops, rows.to(dtype)[:, 1:], m)
    only_once(emulator)


def test_more_entries_than_groups(ops, emulator):
    """Beyond 512 there is no first bar: all of the first tile is collected, in two parts."""
    emulator.set_device(*BUSY)
    for style in ("normal", "ties", "few_special"):
        check(ops, hostile((1, 17000), torch.float32, 2, style), 530)
    only_once(emulator)


def one_in_each_group(groups: int, dtype: torch.dtype) -> Tensor:
    """A row of one tile with one large entry in each group, all different: 256 groups are those of
    the threads, 1024 their packs of 16 bytes, which are 256 apart."""
    pack = 16 // dtype.itemsize
    row = torch.arange(1024 * pack).remainder(50) / 64
    group = torch.arange(groups)
    packs = group if groups == 1024 else group + 256 * (group * 7 % 4)
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(groups))
    large = (0x4000 + order if dtype == torch.bfloat16 else 0x40000000 + order).int()
    large = (large << 16 if dtype == torch.bfloat16 else large).view(torch.float32)
    row[packs * pack + group * 5 % pack] = large * torch.tensor([1.0, -1.0])[group % 2]
    return row.to(dtype)


@pytest.mark.parametrize("groups", [256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_large_entry_in_each_group(ops, groups, dtype):
    """The first bar is the m-th largest entry then, and not one more reaches it."""
    row = one_in_each_group(groups, dtype)[None]
    for m in (1, 40, 64) if groups == 256 else (65, 100, 128):
        check(ops, row, m)


@pytest.mark.parametrize("m", [1, 2, 63, 64, 65])
def test_as_many_entries_as_groups(ops, m):
    for dtype in (torch.float32, torch.bfloat16):
        check(ops, hostile((1, 2100), dtype, m, "normal"), m)
        check(ops, hostile((1, 2100), dtype, m, "close"), m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_and_alignment(ops, emulator, dtype):
    p = 2080
    memory = hostile((3, p + 13), dtype, 2, "few_special")
    for first in (1, 2, 3, 7):
        check(ops, memory[:1, first : p + first], 17)
    for u in (memory[::2, :p], memory[:1].expand(2, -1)[:, :p],
              memory[:, : p + 8].reshape(3, 1, -1)[..., 5:]):  # fmt: skip
        check(ops, u, 17)
    check(ops, hostile((1, 8210), dtype, 2, "ties")[:, 3:], 17)  # tiles that begin before the row
    only_once(emulator)


def test_every_length_of_a_tail(ops):
    for p in range(2048, 2066):
        check(ops, hostile((2, p), torch.bfloat16, p, "few_special"), 9)


def test_the_order_of_blocks_and_rows_is_not_seen(ops, emulator):
    u = hostile((4, 2100), torch.bfloat16, 1, "ties")
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    check(ops, u, 33)
    one_by_one = [ops.top_m(u[r : r + 1], 33, False) for r in range(4)]
    values, indices = ops.top_m(u, 33, False)
    assert same_bits(values, torch.cat([v for v, _ in one_by_one]))
    assert torch.equal(indices, torch.cat([i for _, i in one_by_one]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_few_long_rows_fill_the_device(ops, emulator, dtype):
    """Slices of one tile, the last of them shorter than m; then m of their candidates, which are in
    order, by a warp. Blocks may end in any order."""
    p = 5 * 16384 // dtype.itemsize + 7
    emulator.block_order = lambda n: range(n - 1, -1, -1)
    for style in ("few_special", "ties"):
        emulator.launches.clear()
        check(ops, hostile((2, p + 3), dtype, 4, style)[:, 3:], 10)
        kinds = [(n.kernel, n.grid) for n in emulator.launches[:2]]
        assert kinds == [(KERNEL, 12), ("top_m_warp_kernel", 1)]


@pytest.mark.parametrize("style", STYLES)
def test_candidates_of_every_style(ops, emulator, style):
    """Winners of all slices and of one, out of order; a warp has them in 4, 8, 16, 32 registers a
    lane."""
    emulator.set_device(2, BUSY[1])
    u = hostile((1, 22000), torch.float32, 6, style)
    for m in (20, 40, 64):
        for positive in (False, True):
            got, want = ops.top_m(u, m, positive), reference.top_m(u, m, positive)[1]
            assert torch.equal(got[1], want)
            assert torch.equal(as_bits(got[0]), selectable(u, positive).gather(1, want))


@pytest.mark.parametrize(
    ("p", "m", "merging"), [(131000, 33, KERNEL), (102500, 300, "top_m_block_kernel")]
)
def test_candidates_that_no_warp_holds(ops, emulator, p, m, merging):
    """Of a row in 32 slices, and of one whose m is more than a part in 32 of them."""
    for style in ("few_special", "ties"):
        emulator.launches.clear()
        u = hostile((1, p), torch.float32, 6, style)
        values, indices = ops.top_m(u, m, False)
        want = reference.top_m(u, m)[1]
        assert torch.equal(indices, want)
        assert torch.equal(as_bits(values), as_bits(u).gather(1, want))
        assert [n.kernel for n in emulator.launches] == [KERNEL, merging]


def test_rows_that_no_block_takes_whole(ops, emulator):
    emulator.set_device(*BUSY)
    u = hostile((2, (1 << 17) + 5), torch.bfloat16, 4, "few_special")
    values, indices = ops.top_m(u, 12, False)
    assert torch.equal(indices, reference.top_m(u, 12)[1])
    assert same_bits(values, u.gather(1, indices))
    assert [n.grid for n in emulator.launches] == [4, 1]


# Of 132 multiprocessors, float32: rows, p, m -> blocks of the slices, of the merge.
SLICED = {
    (1, 131072, 32): (32, 1), (8, 131072, 32): (256, 2), (64, 131072, 32): (512, 16),
    (1, 1 << 20, 32): (128, 1), (8, 1 << 20, 32): (512, 8), (64, 1 << 20, 32): (512, 16),
    (132, 131072, 32): (528, 33), (133, 131072, 32): (133,), (1, 20479, 32): (1,),
    (8, 131072, 1000): (16, 8), (8, 131072, 3000): (40, 8), (1, 0, 0): (), (1, 50000, 0): (),
}  # fmt: skip


@pytest.mark.parametrize("case", SLICED, ids=str)
def test_slices(emulator, case):
    rows, p, m = case
    with recording(emulator) as launches, rows_read_once():
        dk.top_m(torch.empty(rows, p, device="meta"), m)
    assert tuple(n.grid for n in launches) == SLICED[case]


def test_slices_fill_the_device_once(emulator):
    """Of any few long rows: no more blocks than are resident at once, four a multiprocessor, and
    none that has more than 4 tiles above its share."""
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        processors = int(torch.randint(1, 200, (), generator=g))
        rows = int(torch.randint(1, processors + 1, (), generator=g))
        p = int(torch.randint(2048, 1 << 19, (), generator=g))
        emulator.set_device(processors, BUSY[1])
        with recording(emulator) as launches, rows_read_once():
            dk.top_m(torch.empty(rows, p, device="meta"), 20)
        blocks = launches[0].grid
        whole = -(-p // (1 << 17)) * rows  # as few as rows allow
        assert blocks <= max(4 * processors, whole)
        assert blocks % rows == 0
        share = max(4096, p / (4 * processors // rows))
        assert p * rows / blocks <= max(share + 5 * 4096, (20 * p) ** 0.5 + 4096)


def test_what_does_not_fit_goes_the_other_way(ops, emulator):
    """Little shared memory, half types of short rows, m beyond a part of the row in 32."""
    for p, m, dtype in ((1100, 35, torch.float32), (2000, 20, torch.bfloat16)):
        emulator.launches.clear()
        check(ops, hostile((1, p), dtype, 4, "normal"), m)
        assert {n.kernel for n in emulator.launches} == {"top_m_block_kernel"}
    emulator.set_device(*SMALL)
    emulator.launches.clear()
    check(ops, hostile((1, 9001), torch.float32, 4, "normal"), 9)
    assert KERNEL not in {n.kernel for n in emulator.launches}


def test_m_of_none_and_all(ops):
    u = hostile((2, 1500), torch.float32, 4, "special")
    for m in (0, 1499, 1500):
        check(ops, u, m)


def test_the_switch_is_off_and_changes_no_bit(ops, emulator):
    u = hostile((2, 2500), torch.float32, 8, "few_special")
    mine = ops.top_m(u, 30, False)
    with rows_read_once(False):
        emulator.launches.clear()
        other = ops.top_m(u, 30, False)
        assert [n.kernel for n in emulator.launches] == ["top_m_block_kernel"]
    assert torch.equal(mine[1], other[1])
    assert torch.equal(as_bits(mine[0]), as_bits(other[0]))
