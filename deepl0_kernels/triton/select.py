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
    for i in tl.static_range(31):
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
