"""Exact selection inside a kernel: which entries of the rows of a tile are the m of largest |u|.

The key is the integer image of |u|, so the order is exact and subnormal numbers are ordered
correctly whatever the flush-to-zero mode. Padding has key -1 and is never kept while m <= p.

The cut is found by counting: one comparison and one addition per entry and pass. The search walks
down from the largest key in doubling steps until m keys are at or above it, then halves; it stops
as soon as every row of the tile has a bound with exactly m keys at or above it. On continuous data
that takes about 3 + log2(p) passes; the worst case, ties at the cut, is about 40.
"""

from __future__ import annotations

import triton
import triton.language as tl

# First step of the search: one octave of float32.
_OCTAVE = tl.constexpr(1 << 23)
_LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def magnitude_key(u):
    """int32 key of u (float32, float16, bfloat16): ascending in |u|; NaN is one key, above inf."""
    if u.dtype == tl.float32:
        return tl.minimum(u.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800001)
    else:
        key = u.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
        return tl.minimum(key, 0x7C01 if u.dtype == tl.float16 else 0x7F81)


@triton.jit
def positive_part(u):
    """max(u, 0), a NaN as it is: -0.0 becomes +0, and no subnormal number is lost. As integers,
    -0.0 is the least, and numbers ascend from there to -inf, before all NaNs."""
    if u.dtype == tl.float32:
        below = u.to(tl.int32, bitcast=True) <= -0x800000
    else:
        below = u.to(tl.int16, bitcast=True) <= (-0x400 if u.dtype == tl.float16 else -0x80)
    return tl.where(below, tl.zeros_like(u), u)


@triton.jit
def _bracket(keys, m):
    """Per row [ROWS]: a bound, how many keys are >= it, how many keys are > it.

    Exactly m keys are >= bound, or more are and fewer than m are > bound (then only the first
    number is m's equal or above, and the last is exact).
    """
    ROWS: tl.constexpr = keys.shape[0]
    high = tl.max(keys, axis=1) + 1  # fewer than m keys are >= high
    low = high  # at least m keys are >= low, once reached >= m
    reached = tl.zeros((ROWS,), tl.int32)
    above = tl.zeros((ROWS,), tl.int32)
    step = _OCTAVE
    unresolved = tl.max((reached != m).to(tl.int32), axis=0)
    while unresolved > 0:
        down = tl.where(high > 0, tl.maximum(high - step, 0), -1)
        # A row that is mostly zeros would halve down to 1: it is asked at once.
        halved = tl.where(low == 0, 1, low + ((high - low) >> 1))
        trial = tl.where(reached >= m, tl.minimum(halved, high), down)
        count = keys.shape[1] + tl.sum((keys - trial[:, None]) >> 31, axis=1)
        enough = count >= m
        low = tl.where(enough, trial, low)
        reached = tl.where(enough, count, reached)
        high = tl.where(enough, high, trial)
        above = tl.where(enough, above, count)
        step = tl.minimum(step * 2, 1 << 30)
        wide = tl.where(reached > m, high - low > 1, high > -1)
        unresolved = tl.max(((reached != m) & wide).to(tl.int32), axis=0)
    return low, reached, above


@triton.jit
def cut(keys, m):
    """The m-th largest key of each row [ROWS] (2^31 - 1 for m = 0)."""
    bound, _, _ = _bracket(keys, m)
    return tl.min(tl.where(keys >= bound[:, None], keys, _LARGEST), axis=1)


@triton.jit
def keep_mask(keys, m):
    """Exactly m entries of each row: the largest keys, ties to the lowest index."""
    bound, reached, above = _bracket(keys, m)
    keep = keys >= bound[:, None]
    if tl.max(reached, axis=0) > m:  # ties at the cut: rare, and the only need of a scan
        left = tl.where(reached > m, m - above, _LARGEST)
        tie = keys == bound[:, None]
        rank = tl.cumsum(tie.to(tl.int32), axis=1)
        keep = keep & ((rank <= left[:, None]) | (keys > bound[:, None]))
    return keep


@triton.jit
def selection(keys, columns, m):
    """What is kept of each row, as two numbers: keys above ``t``, and those equal to it in the
    columns below ``end``. Cheaper in registers than a mask over the tile, and the same in any
    layout of it: see :func:`selected`."""
    t, reached, above = _bracket(keys, m)
    end = tl.full((keys.shape[0],), keys.shape[1], tl.int32)
    if tl.max(reached, axis=0) > m:
        # The end by bisection: as many of the columns below it tie as are left. Counted in signs:
        # of sums of comparisons the compiler makes bits of an array in local memory.
        left = tl.where(reached > m, m - above, keys.shape[1])
        low = tl.zeros((keys.shape[0],), tl.int32)
        width = keys.shape[1] // 2
        while width > 0:
            trial = low + width
            below = (columns[None, :] - trial[:, None]) >> 31
            count = -tl.sum(tl.where(keys == t[:, None], below, 0), axis=1)
            low = tl.where(count < left, trial, low)
            width = width // 2
        end = low + tl.where(left > 0, 1, 0)
    return t, end


@triton.jit
def selected(keys, columns, t, end):
    """The mask of :func:`selection` on any part of the columns."""
    t, end = t[:, None], end[:, None]
    return (keys > t) | ((keys == t) & (columns[None, :] < end))
