"""Selection in long rows of which many entries are kept: the cut by radix counting, then one pass.

The key of the m-th largest entry is found digit by digit from the top (8, 8, 8, 7 bits; 8, 7 for
half types): one launch per digit counts the entries that agree with the digits found so far, in one
histogram per segment of a row; the next launch adds the histograms up. A last launch reads the rows
once more and writes what is kept, at offsets that follow from the histograms. N p elements are read
5 times (3 for half types), mostly from L2 when few rows are in flight. The counts are integers and
no atomics cross programs, so every run is the same; the host waits for nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, launch, power_of_two
from .select import magnitude_key, positive_part
from .table import FEW_PROGRAMS, config

# Segments start at multiples of this many entries: vector loads, and whole bytes of the mask.
UNIT = tl.constexpr(16)
_BINS = tl.constexpr(256)
_MOST_SEGMENTS = 32


@triton.jit
def segment_bounds(segment, segments, p):
    """First entry and end of a segment of a row; all segments differ by at most UNIT in length."""
    units = (p + UNIT - 1) // UNIT
    first = segment * units // segments * UNIT
    end = tl.minimum((segment + 1) * units // segments * UNIT, p)
    return first, end


@triton.jit
def pack_bits(keep):
    """bool [ROWS, COLUMNS] -> uint8 [ROWS, COLUMNS / 8]: entry j is bit j % 8 of byte j // 8."""
    ROWS: tl.constexpr = keep.shape[0]
    BYTES: tl.constexpr = keep.shape[1] // 8
    bits = keep.reshape(ROWS, BYTES, 8).to(tl.int32) << tl.arange(0, 8)[None, None, :]
    return tl.sum(bits, axis=2).to(tl.uint8)


@triton.jit
def _next_digit(histogram_ptr, left, segments, SEGMENTS: tl.constexpr):
    """The digit of the cut, from one row's histograms [segments, 256], of which ``left`` entries
    are to be kept. Also per segment: entries above that digit, entries at it."""
    s = tl.arange(0, SEGMENTS)
    bins = tl.arange(0, _BINS)
    at = s[:, None] * _BINS + bins[None, :]
    counts = tl.load(histogram_ptr + at, mask=(s < segments)[:, None], other=0)
    at_least = tl.cumsum(tl.sum(counts, axis=0), axis=0, reverse=True)
    digit = tl.sum((at_least >= left).to(tl.int32), axis=0) - 1
    above = tl.sum(tl.where((bins > digit)[None, :], counts, 0), axis=1)
    equal = tl.sum(tl.where((bins == digit)[None, :], counts, 0), axis=1)
    return digit, above, equal


@triton.jit
def radix_count_kernel(
    u_ptr, counts_in_ptr, counts_out_ptr, state_in_ptr, state_out_ptr, above_in_ptr, above_out_ptr,
    p, m, u_stride, segments,
    POSITIVE: tl.constexpr, FIRST: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Histogram [256] of one digit, of the entries of one segment that agree with the prefix.

    state: (prefix of the cut, number of entries above every key of that prefix) per row; above:
    that number per segment. Every launch reads one copy and writes the next.
    """
    pid = tl.program_id(0).to(tl.int64)
    row = pid // segments
    segment = pid % segments
    prefix = tl.full((), 0, tl.int32)
    if not FIRST:
        prefix = tl.load(state_in_ptr + 2 * row)
        taken = tl.load(state_in_ptr + 2 * row + 1)
        rows_counts = counts_in_ptr + row * segments * _BINS
        digit, above, _ = _next_digit(rows_counts, m - taken, segments, SEGMENTS)
        prefix = (prefix << 8) | digit
        if segment == 0:
            tl.store(state_out_ptr + 2 * row, prefix)
            tl.store(state_out_ptr + 2 * row + 1, taken + tl.sum(above, axis=0))
        own = tl.sum(tl.where(tl.arange(0, SEGMENTS) == segment, above, 0), axis=0)
        tl.store(above_out_ptr + pid, tl.load(above_in_ptr + pid) + own)
    first, end = segment_bounds(segment, segments, p)
    u_ptr += row * u_stride
    counts = tl.zeros((_BINS,), tl.int32)
    for start in range(first.to(tl.int32), end.to(tl.int32), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < end.to(tl.int32)
        u = tl.load(u_ptr + columns, mask=inside, other=0.0)
        key = magnitude_key(positive_part(u) if POSITIVE else u)
        agrees = inside & ((key >> SHIFT >> WIDTH) == prefix)
        counts += tl.histogram((key >> SHIFT) & ((1 << WIDTH) - 1), _BINS, mask=agrees)
    tl.store(counts_out_ptr + pid * _BINS + tl.arange(0, _BINS), counts)


@triton.jit
def radix_emit_kernel(
    u_ptr, counts_ptr, state_ptr, above_ptr, first_out_ptr, second_out_ptr,
    p, m, u_stride, segments,
    DENSE: tl.constexpr, POSITIVE: tl.constexpr,
    WIDTH: tl.constexpr, SEGMENTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write what a segment keeps: values and indices, or (DENSE) dense rows and the packed mask,
    where POSITIVE of those that are not 0."""
    pid = tl.program_id(0).to(tl.int64)
    row = pid // segments
    segment = pid % segments
    left = m - tl.load(state_ptr + 2 * row + 1)
    digit, above, ties = _next_digit(counts_ptr + row * segments * _BINS, left, segments, SEGMENTS)
    cut = (tl.load(state_ptr + 2 * row) << WIDTH) | digit
    left -= tl.sum(above, axis=0)
    some_ties = tl.sum(ties, axis=0) > left
    s = tl.arange(0, SEGMENTS)
    above += tl.load(above_ptr + row * segments + s, mask=s < segments, other=0)
    ties_before = tl.sum(tl.where(s < segment, ties, 0), axis=0)
    rank = tl.sum(tl.where(s < segment, above, 0), axis=0) + tl.minimum(ties_before, left)

    first, end = segment_bounds(segment, segments, p)
    end = end.to(tl.int32)  # within a row offsets are 32 bits
    u_ptr += row * u_stride
    if DENSE:
        first_out_ptr += row * p
        second_out_ptr += row * tl.cdiv(p, 8)
    else:
        first_out_ptr += row * m
        second_out_ptr += row * m
    for start in range(first.to(tl.int32), end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < end
        u = tl.load(u_ptr + columns, mask=inside, other=0.0)
        if POSITIVE:
            u = positive_part(u)
        key = magnitude_key(u)
        keep = inside & (key >= cut)
        if some_ties:
            tie = (inside & (key == cut)).to(tl.int32)
            keep = keep & ((key > cut) | (ties_before + tl.cumsum(tie, axis=0) <= left))
            ties_before += tl.sum(tie, axis=0)
        if DENSE:
            if POSITIVE:
                keep = keep & (key > 0)
            tl.store(first_out_ptr + columns, tl.where(keep, u, tl.zeros_like(u)), mask=inside)
            bytes_ = start // 8 + tl.arange(0, COLUMNS // 8)
            bits = pack_bits(keep[None, :]).reshape(COLUMNS // 8)
            tl.store(second_out_ptr + bytes_, bits, mask=bytes_ < tl.cdiv(end, 8))
        else:
            kept = keep.to(tl.int32)
            at = rank + tl.cumsum(kept, axis=0) - 1
            tl.store(first_out_ptr + at, u, mask=keep)
            tl.store(second_out_ptr + at, columns.to(tl.int64), mask=keep)
            rank += tl.sum(kept, axis=0)


def select_by_radix(
    u: Tensor, m: int, positive: bool, first_out: Tensor, second_out: Tensor
) -> None:
    """Select the m >= 1 largest of each row of u [n, p]: values and int64 indices, or, where
    ``second_out`` is uint8, dense rows and the packed mask."""
    n, p = u.shape
    if p >= 1 << 31:
        raise ValueError(f"m must be at most 2048 in rows of 2^31 or more entries, got {m}")
    c = config("radix_count", p)
    spread = ceil_div(FEW_PROGRAMS, n)  # several programs per row when there are few rows
    segments = min(spread, _MOST_SEGMENTS, ceil_div(p, 2 * c.columns))
    digits = ((23, 8), (15, 8), (7, 8), (0, 7)) if u.dtype == torch.float32 else ((7, 8), (0, 7))
    counts = torch.empty(2, n * segments * _BINS.value, dtype=torch.int32, device=u.device)
    state = torch.zeros(len(digits), n, 2, dtype=torch.int32, device=u.device)
    above = torch.zeros(len(digits), n, segments, dtype=torch.int32, device=u.device)
    for i, (shift, width) in enumerate(digits):
        launch(
            radix_count_kernel, (n * segments,),
            u, counts[1 - i % 2], counts[i % 2], state[max(i - 1, 0)], state[i],
            above[max(i - 1, 0)], above[i],
            p, m, u.stride(0), segments,
            config=c, POSITIVE=positive, FIRST=i == 0, SHIFT=shift, WIDTH=width,
            SEGMENTS=power_of_two(segments), COLUMNS=c.columns,
        )  # fmt: skip
    c = config("radix_emit", p)
    launch(
        radix_emit_kernel, (n * segments,),
        u, counts[(len(digits) - 1) % 2], state[-1], above[-1], first_out, second_out,
        p, m, u.stride(0), segments,
        config=c, DENSE=second_out.dtype == torch.uint8, POSITIVE=positive, WIDTH=digits[-1][1],
        SEGMENTS=power_of_two(segments), COLUMNS=c.columns,
    )  # fmt: skip
