"""Buffers of candidates: per row and part of the columns, the entries that may still be selected.

A buffer has CAPACITY places, filled in the order of the columns. Its state is how many are in use
and the row's threshold: the m-th largest key among all columns the part has seen, or -1 before it
has seen m. A later entry equal to the threshold loses against m earlier ones, so only larger keys
enter: exact, ties to the lowest index.

Rows of buffers are CAPACITY + 1 places apart, and those of the scratch tile COLUMNS + 1: a thread
then loads one element at a time, as it will have to store them, and values, masks and addresses
stay in their threads. Aligned rows would be loaded four by four and then change hands.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .select import keep_mask, magnitude_key


@triton.jit
def load_candidates(value_ptr, index_ptr, state_ptr, buffers, live, place, CAPACITY: tl.constexpr):
    """Keys, values and indices in the places ``place`` of ``buffers``; a place not in use has
    key -1."""
    count = tl.load(state_ptr + buffers * 2, mask=live, other=0)
    used = place < count
    at = buffers * (CAPACITY + 1) + place
    value = tl.load(value_ptr + at, mask=used, other=0.0)
    index = tl.load(index_ptr + at, mask=used, other=0)
    return tl.where(used, magnitude_key(value), -1), value, index


@triton.jit
def compact(value_ptr, index_ptr, state_ptr, buffers, m, CAPACITY: tl.constexpr):
    """Keep the m best of each of the ``buffers`` [ROWS], and set the thresholds."""
    places = tl.arange(0, CAPACITY)[None, :]
    key, value, index = load_candidates(
        value_ptr, index_ptr, state_ptr, buffers[:, None], True, places, CAPACITY
    )
    keep = keep_mask(key, m) & (key >= 0)  # a buffer may hold fewer than m
    kept = keep.to(tl.int32)
    size = tl.sum(kept, axis=1)
    threshold = tl.min(tl.where(keep, key, 0x7FFFFFFF), axis=1)
    to = buffers[:, None] * (CAPACITY + 1) + tl.cumsum(kept, axis=1) - 1
    tl.debug_barrier()  # every place is read before it is written
    tl.store(value_ptr + to, value, mask=keep)
    tl.store(index_ptr + to, index, mask=keep)
    tl.store(state_ptr + buffers * 2, size)
    # Rows beyond the batch have size 0 and keep the threshold that nothing exceeds.
    tl.store(state_ptr + buffers * 2 + 1, threshold, mask=size == m)


@triton.jit
def admit(
    u, columns, p, value_ptr, index_ptr, state_ptr, rows, sub, m,
    CAPACITY: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """The entries u [ROWS, COLUMNS] above the thresholds enter the buffers of ``rows``, which are
    sub, sub + 1, ...; if one would overflow, the buffers are cut down first, COMPACT at a time."""
    count = tl.load(state_ptr + rows * 2)
    threshold = tl.load(state_ptr + rows * 2 + 1)
    key = tl.where((columns < p)[None, :], magnitude_key(u), -1)
    arriving = -tl.sum((threshold[:, None] - key) >> 31, axis=1)
    if tl.max(count + arriving, axis=0) > CAPACITY:
        for first in range(0, u.shape[0], COMPACT):
            some = sub + first + tl.arange(0, COMPACT)
            compact(value_ptr, index_ptr, state_ptr, some, m, CAPACITY)
        tl.debug_barrier()
        count = tl.load(state_ptr + rows * 2)
        threshold = tl.load(state_ptr + rows * 2 + 1)
    if tl.max(arriving, axis=0) > 0:
        enters = key > threshold[:, None]
        place = count[:, None] + tl.cumsum(enters.to(tl.int32), axis=1)
        to = rows[:, None] * (CAPACITY + 1) + place - 1
        tl.store(value_ptr + to, u, mask=enters)
        tl.store(index_ptr + to, tl.broadcast_to(columns[None, :], u.shape), mask=enters)
        tl.debug_barrier()  # the state is read before it is written
        tl.store(state_ptr + rows * 2, tl.max(place, axis=1))
