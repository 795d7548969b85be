"""Selection over a whole batch: batch_top_m.

As radix.py does for a row: the cut is found digit by digit from the top (8, 8, 8, 7 bits of a key;
8, 7 of half types), here by one histogram over the batch for each digit, to which every program
adds its own. Then the entries above the cut and at it are counted in every piece of a row, these
counts are added up, and the pieces write what is kept at their places. u is read 6 times, 4 times
of half types. All counts are integers, so the order of the atomic additions cannot be seen; the
host waits for nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, launch
from .select import magnitude_key, positive_part
from .table import config, resident_programs
from .top_m import rows_of

_BINS = tl.constexpr(256)


@triton.jit
def _agreed(histograms_ptr, m, DIGITS: tl.constexpr, LAST: tl.constexpr):
    """The first DIGITS digits of the cut from their histograms, and how many entries that agree
    with them are to be kept. The digit LAST is of 7 bits, the others of 8."""
    bins = tl.arange(0, _BINS)
    prefix = tl.full((), 0, tl.int32)
    left = tl.full((), 0, tl.int64) + m
    for i in tl.static_range(DIGITS):
        counts = tl.load(histograms_ptr + i * _BINS + bins)
        at_least = tl.cumsum(counts, axis=0, reverse=True)
        digit = tl.sum((at_least >= left).to(tl.int32), axis=0) - 1
        left -= tl.sum(tl.where(bins > digit, counts, 0), axis=0)
        prefix = (prefix << (7 if i == LAST else 8)) | digit
    return prefix, left


@triton.jit
def _load(
    u_ptr, n, p, u_stride, rows, columns, POSITIVE: tl.constexpr
):  # fmt: skip
    """A tile of u, and its keys, -1 outside."""
    inside = (rows < n)[:, None] & (columns < p)[None, :]
    u = tl.load(u_ptr + rows[:, None] * u_stride + columns[None, :], mask=inside, other=0.0)
    if POSITIVE:
        u = positive_part(u)
    return u, tl.where(inside, magnitude_key(u), -1)


@triton.jit
def batch_digit_kernel(
    u_ptr, histograms_ptr, n, p, m, u_stride, segments, tiles, programs,
    POSITIVE: tl.constexpr, DIGIT: tl.constexpr, LAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds to the histogram of one digit the entries that agree with the digits before."""
    SHIFT: tl.constexpr = 0 if DIGIT == LAST else 8 * (LAST - DIGIT) - 1
    WIDTH: tl.constexpr = 7 if DIGIT == LAST else 8
    prefix, _left = _agreed(histograms_ptr, m, DIGIT, LAST)
    bins = tl.arange(0, _BINS)
    counts = tl.zeros((_BINS,), tl.int64)
    first = tl.program_id(0).to(tl.int64)
    for tile in range(first, tiles, programs):
        rows = tile // segments * ROWS + tl.arange(0, ROWS)
        columns = tile % segments * COLUMNS + tl.arange(0, COLUMNS)
        _u, keys = _load(u_ptr, n, p, u_stride, rows, columns, POSITIVE)
        key = keys.reshape(ROWS * COLUMNS)
        agrees = (key >= 0) & ((key >> SHIFT >> WIDTH) == prefix)
        found = tl.histogram((key >> SHIFT) & ((1 << WIDTH) - 1), _BINS, mask=agrees)
        counts += found.to(tl.int64)
    tl.atomic_add(histograms_ptr + DIGIT * _BINS + bins, counts, mask=counts > 0)


@triton.jit
def batch_count_kernel(
    u_ptr, histograms_ptr, cut_ptr, above_ptr, ties_ptr,
    n, p, m, u_stride, segments, tiles, programs,
    POSITIVE: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """above, ties [n, segments]: keys of a segment of a row above the cut, and equal to it.
    cut [2]: its key, and how many of the entries equal to it are kept."""
    cut, left = _agreed(histograms_ptr, m, LAST + 1, LAST)
    first = tl.program_id(0).to(tl.int64)
    if first == 0:
        tl.store(cut_ptr, cut.to(tl.int64))
        tl.store(cut_ptr + 1, left)
    for tile in range(first, tiles, programs):
        rows = tile // segments * ROWS + tl.arange(0, ROWS)
        columns = tile % segments * COLUMNS + tl.arange(0, COLUMNS)
        _u, key = _load(u_ptr, n, p, u_stride, rows, columns, POSITIVE)
        at = rows * segments + tile % segments
        live = rows < n
        tl.store(above_ptr + at, tl.sum((key > cut).to(tl.int32), axis=1), mask=live)
        tl.store(ties_ptr + at, tl.sum((key == cut).to(tl.int32), axis=1), mask=live)


@triton.jit
def batch_write_kernel(
    u_ptr, cut_ptr, ends_ptr, ties_ptr, values_ptr, indices_ptr, n, p, u_stride, segments,
    POSITIVE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Values and indices of what is kept. ends, ties [n, segments]: how many entries are kept, and
    equal to the cut, up to the end of a segment."""
    tile = tl.program_id(0).to(tl.int64)
    rows = tile // segments * ROWS + tl.arange(0, ROWS)
    columns = tile % segments * COLUMNS + tl.arange(0, COLUMNS)
    u, key = _load(u_ptr, n, p, u_stride, rows, columns, POSITIVE)
    before = rows * segments + tile % segments - 1
    known = (rows < n) & (before >= 0)
    place = tl.load(ends_ptr + before, mask=known, other=0)
    ties = tl.load(ties_ptr + before, mask=known, other=0)
    cut = tl.load(cut_ptr).to(tl.int32)
    left = tl.load(cut_ptr + 1)
    tie = key == cut
    rank = tl.cumsum(tie.to(tl.int32), axis=1) + ties[:, None]
    keep = (key > cut) | (tie & (rank <= left))
    to = place[:, None] + tl.cumsum(keep.to(tl.int32), axis=1) - 1
    tl.store(values_ptr + to, u, mask=keep)
    index = tl.broadcast_to(columns[None, :], (ROWS, COLUMNS))
    tl.store(indices_ptr + to, index, mask=keep)


def batch_top_m(u: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Serves ``deepl0::batch_top_m``: values and columns [B m], and row offsets [B + 1]."""
    batch = u.shape[:-1].numel()
    entries = batch * m
    values = u.new_empty(entries)
    indices = u.new_empty(entries, dtype=torch.int64)
    if not entries:
        return values, indices, indices.new_zeros(batch + 1)
    u = rows_of(u)
    n, p = u.shape
    c = config("batch_top_m", p)
    segments = ceil_div(p, c.columns)
    tiles = ceil_div(n, c.rows) * segments
    programs = min(tiles, 4 * resident_programs(u.device))
    last = 3 if u.dtype == torch.float32 else 1
    histograms = indices.new_zeros(last + 1, _BINS.value)
    cut = indices.new_empty(2)
    counts = indices.new_empty((2, n * segments), dtype=torch.int32)
    shape = {"POSITIVE": positive, "ROWS": c.rows, "COLUMNS": c.columns}
    for digit in range(last + 1):
        launch(
            batch_digit_kernel, (programs,),
            u, histograms, n, p, entries, u.stride(0), segments, tiles, programs,
            config=c, DIGIT=digit, LAST=last, **shape,
        )  # fmt: skip
    launch(
        batch_count_kernel, (programs,),
        u, histograms, cut, *counts, n, p, entries, u.stride(0), segments, tiles, programs,
        config=c, LAST=last, **shape,
    )  # fmt: skip
    above, ties = counts.cumsum(1, dtype=torch.int64)
    ends = above + torch.minimum(ties, cut[1])
    launch(
        batch_write_kernel, (tiles,),
        u, cut, ends, ties, values, indices, n, p, u.stride(0), segments,
        config=c, **shape,
    )  # fmt: skip
    offsets = torch.cat([ends.new_zeros(1), ends[segments - 1 :: segments]])
    return values, indices, offsets
