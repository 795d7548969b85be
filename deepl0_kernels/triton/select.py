"""Exact selection inside a kernel: which entries of the rows of a tile are the m of largest |u|.

The key is the integer image of |u|, so the order is exact and subnormal numbers are ordered
correctly whatever the flush-to-zero mode. Padding has key -1 and is never kept while m <= p.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def magnitude_key(u):
    """int32 key of float32 u: ascending in |u|; every NaN is one key, above inf."""
    key = u.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(key, 0x7F800001)


@triton.jit
def cut(keys, m):
    """The m-th largest key of each row [ROWS]: its bits are found from the top by counting."""
    t = tl.zeros((keys.shape[0],), tl.int32)
    for i in range(31):
        trial = t | (1 << (30 - i))
        count = tl.sum((keys >= trial[:, None]).to(tl.int32), axis=1)
        t = tl.where(count >= m, trial, t)
    return t


@triton.jit
def keep_mask(keys, m):
    """Exactly m entries of each row: the largest keys, ties to the lowest index."""
    t = cut(keys, m)
    above = keys > t[:, None]
    tie = keys == t[:, None]
    left = m - tl.sum(above.to(tl.int32), axis=1)
    return above | (tie & (tl.cumsum(tie.to(tl.int32), axis=1) <= left[:, None]))


@triton.jit
def selection(keys, columns, m):
    """What is kept of each row, as two numbers: keys above ``t``, and those equal to it in the
    columns below ``end``. Cheaper in registers than a mask over the tile, and the same in any
    layout of it: see :func:`selected`."""
    t = cut(keys, m)
    left = m - tl.sum((keys > t[:, None]).to(tl.int32), axis=1)
    end = tl.full((keys.shape[0],), keys.shape[1], tl.int32)
    ties = tl.sum((keys == t[:, None]).to(tl.int32), axis=1)
    if tl.max(ties - left, axis=0) > 0:
        # The end by bisection: as many of the columns below it tie as are left.
        low = tl.zeros((keys.shape[0],), tl.int32)
        width = keys.shape[1] // 2
        while width > 0:
            trial = low + width
            tie = (keys == t[:, None]) & (columns[None, :] < trial[:, None])
            low = tl.where(tl.sum(tie.to(tl.int32), axis=1) < left, trial, low)
            width = width // 2
        end = low + tl.where(left > 0, 1, 0)
    return t, end


@triton.jit
def selected(keys, columns, t, end):
    """The mask of :func:`selection` on any part of the columns."""
    t, end = t[:, None], end[:, None]
    return (keys > t) | ((keys == t) & (columns[None, :] < end))
