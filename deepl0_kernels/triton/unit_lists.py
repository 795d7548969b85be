"""Sparse rows grouped by unit, and the sums over a unit's entries that the backward passes need.

The entries of the batch's codes are sorted by unit (stable: rows ascend within a unit), so that a
gradient's row is summed by one program in one fixed order: deterministic, no atomics, and no
length ever comes back to the host.

Usage may be skewed, up to one unit that every row uses. Hence two launches: first every chunk of
CHUNK sorted entries that lies within one unit is summed to a row of ``partial``, then every unit
adds its head, its whole chunks and its tail. A program's work is at most 2 CHUNK entries and
length / CHUNK rows; a chunk that is shared by several units costs nothing in the first launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, launch, power_of_two
from .table import config


class UnitLists(NamedTuple):
    """Entries by unit: unit i has entries [start[i], start[i + 1])."""

    start: Tensor  # int64 [units + 1]
    unit: Tensor  # ascending [entries]
    row: Tensor  # int32 [entries]
    coefficient: Tensor  # [entries]


def group(indices: Tensor, coefficients: Tensor, units: int, rows: int | None = None) -> UnitLists:
    """The lists of the entries of sparse rows [R, m]. An index outside [0, units) is in none.

    With ``rows``, row r of the R counts as row r % rows: the stages of a batch one after another.
    12 bytes an entry stay (16 more while sorting), 8 bytes a unit.
    """
    keys = indices.reshape(-1)
    if units < 2**31 - 1:
        keys = keys.clamp(-1, units).to(torch.int32)  # no far index may wrap into the range
    keys, order = torch.sort(keys, stable=True)
    bounds = torch.arange(units + 1, dtype=keys.dtype, device=keys.device)
    row = order // max(1, indices.shape[-1])
    return UnitLists(
        torch.searchsorted(keys, bounds),
        keys,
        (row if rows is None else row % rows).to(torch.int32),
        coefficients.reshape(-1)[order],
    )


@triton.jit
def whole_chunks(unit_ptr, chunks, count, CHUNK: tl.constexpr):
    """First and last entry of the chunks that lie within one unit; of the others, an empty range.
    The last chunk may be short: it is left to the units."""
    first = chunks * CHUNK
    whole = first + CHUNK <= count
    low = tl.load(unit_ptr + first, mask=whole, other=0)
    high = tl.load(unit_ptr + first + CHUNK - 1, mask=whole, other=-1)
    return first, tl.where(low == high, first + CHUNK, first)


@triton.jit
def split_units(start_ptr, units, count, CHUNK: tl.constexpr):
    """Of each unit: its first and last entry, its whole chunks [c0, c1), and where the entries
    before and after those end and begin."""
    inside = units < count
    first = tl.load(start_ptr + units, mask=inside, other=0)
    last = tl.load(start_ptr + units + 1, mask=inside, other=0)
    c0 = (first + CHUNK - 1) // CHUNK
    c1 = last // CHUNK
    has = c0 < c1
    return (first, tl.where(has, c0 * CHUNK, last), tl.where(has, c1 * CHUNK, last), last,
            c0, tl.where(has, c1, c0))  # fmt: skip


@triton.jit
def add_entries(
    acc, first, last, row_ptr, coefficient_ptr, x_ptr, x_row, x_column, columns, inside
):
    """acc [UNITS, COLUMNS] + the sum of coefficient * x[row, columns] over entries [first, last),
    in ascending order: an entry of every unit per step."""
    for j in tl.range(0, tl.max(last - first, axis=0).to(tl.int32), loop_unroll_factor=2):
        at = first + j
        live = at < last
        row = tl.load(row_ptr + at, mask=live, other=0).to(tl.int64)
        c = tl.load(coefficient_ptr + at, mask=live, other=0.0).to(tl.float32)
        here = x_ptr + row[:, None] * x_row + columns[None, :] * x_column
        x = tl.load(here, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
        acc += c[:, None] * x
    return acc


@triton.jit
def combine_chunks_kernel(
    unit_ptr, row_ptr, coefficient_ptr, x_ptr, partial_ptr, count, n, x_row, x_column,
    UNITS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    chunks = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = whole_chunks(unit_ptr, chunks, count, CHUNK)
    acc = add_entries(
        tl.zeros((UNITS, COLUMNS), tl.float32), first, last, row_ptr, coefficient_ptr,
        x_ptr, x_row, x_column, columns, columns < n,
    )  # fmt: skip
    used = (first < last)[:, None] & (columns < n)[None, :]
    tl.store(partial_ptr + chunks[:, None] * n + columns[None, :], acc, mask=used)


@triton.jit
def combine_kernel(
    start_ptr, row_ptr, coefficient_ptr, x_ptr, partial_ptr, out_ptr, count, n, x_row, x_column,
    UNITS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    units = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < n
    first, head, tail, last, c0, c1 = split_units(start_ptr, units, count, CHUNK)
    acc = add_entries(
        tl.zeros((UNITS, COLUMNS), tl.float32), first, head, row_ptr, coefficient_ptr,
        x_ptr, x_row, x_column, columns, inside,
    )  # fmt: skip
    for j in range(0, tl.max(c1 - c0, axis=0).to(tl.int32)):
        here = partial_ptr + (c0 + j)[:, None] * n + columns[None, :]
        acc += tl.load(here, mask=(c0 + j < c1)[:, None] & inside[None, :], other=0.0)
    acc = add_entries(
        acc, tail, last, row_ptr, coefficient_ptr, x_ptr, x_row, x_column, columns, inside
    )
    out = out_ptr + units[:, None] * n + columns[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(units < count)[:, None] & inside[None, :])


def combine(lists: UnitLists, x: Tensor, out: Tensor) -> None:
    """out[i, :] = sum of coefficient * x[row, :] over the entries of unit i; out [units, n].

    2 n flops an entry, a row of x read per entry, out written once; ``partial`` takes
    entries / CHUNK rows.
    """
    (units, n), entries = out.shape, lists.row.numel()
    c = config("combine", n)
    tiles = ceil_div(n, c.columns)
    chunks = entries // c.depth
    partial = torch.empty(chunks, n, dtype=torch.float32, device=out.device)
    tile: dict[str, Any] = dict(config=c, UNITS=c.rows, COLUMNS=c.columns, CHUNK=c.depth)
    launch(
        combine_chunks_kernel, (ceil_div(chunks, c.rows), tiles),
        lists.unit, lists.row, lists.coefficient, x, partial, entries, n, *x.stride(), **tile,
    )  # fmt: skip
    launch(
        combine_kernel, (ceil_div(units, c.rows), tiles),
        lists.start, lists.row, lists.coefficient, x, partial, out, units, n, *x.stride(), **tile,
    )  # fmt: skip


@triton.jit
def scatter_entries(
    out, live, first, last, row_ptr, coefficient_ptr, index_ptr, value_ptr, m, M: tl.constexpr
):
    """out[unit, index[row, :]] += coefficient * value[row, :] over entries [first, last).

    The indices of a row are distinct and the units have rows of their own, so a step has no
    collision; the barrier lets the next step see it.
    """
    for j in range(0, tl.max(last - first, axis=0).to(tl.int32)):
        at = first + j
        entry = live & (at < last)
        row = tl.load(row_ptr + at, mask=entry, other=0).to(tl.int64)
        c = tl.load(coefficient_ptr + at, mask=entry, other=0.0)
        for begin in range(0, m, M):
            k = begin + tl.arange(0, M)
            mask = entry[:, None] & (k < m)[None, :]
            here = row[:, None] * m + k[None, :]
            index = tl.load(index_ptr + here, mask=mask, other=0)
            value = tl.load(value_ptr + here, mask=mask, other=0.0)
            target = out[:, None] + index
            old = tl.load(target, mask=mask, other=0.0)
            tl.debug_barrier()  # threads may hold copies of an element: all read before one writes
            tl.store(target, old + c[:, None] * value, mask=mask)
        tl.debug_barrier()


@triton.jit
def outer_chunks_kernel(
    unit_ptr, row_ptr, coefficient_ptr, index_ptr, value_ptr, partial_ptr, count, m, p,
    UNITS: tl.constexpr, M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    chunks = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    first, last = whole_chunks(unit_ptr, chunks, count, CHUNK)
    scatter_entries(
        partial_ptr + chunks * p, first < last, first, last, row_ptr, coefficient_ptr,
        index_ptr, value_ptr, m, M,
    )  # fmt: skip


@triton.jit
def outer_kernel(
    start_ptr, row_ptr, coefficient_ptr, index_ptr, value_ptr, partial_ptr, out_ptr, count, m, p,
    UNITS: tl.constexpr, M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    units = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    live = units < count
    first, head, tail, last, c0, c1 = split_units(start_ptr, units, count, CHUNK)
    out = out_ptr + units * p
    for j in range(0, tl.max(c1 - c0, axis=0).to(tl.int32)):
        for begin in range(0, p, M):
            k = begin + tl.arange(0, M)
            mask = (c0 + j < c1)[:, None] & (k < p)[None, :]
            chunk = tl.load(partial_ptr + (c0 + j)[:, None] * p + k[None, :], mask=mask, other=0.0)
            target = out[:, None] + k[None, :]
            old = tl.load(target, mask=mask, other=0.0)
            tl.debug_barrier()
            tl.store(target, old + chunk, mask=mask)
        tl.debug_barrier()
    scatter_entries(out, live, first, head, row_ptr, coefficient_ptr, index_ptr, value_ptr, m, M)
    scatter_entries(out, live, tail, last, row_ptr, coefficient_ptr, index_ptr, value_ptr, m, M)


def outer(lists: UnitLists, index: Tensor, value: Tensor, out: Tensor) -> None:
    """out[i, index[row, :]] += coefficient * value[row, :] over the entries of unit i.

    index, value: contiguous rows [R, m], distinct in a row; value, coefficients, out [units, p]:
    float32. 2 m flops an entry, m elements of a row of out read and written. A chunk is long,
    since its partial row has p elements: at most entries / max(4096, 8 m) of them.
    """
    (units, p), entries, m = out.shape, lists.row.numel(), index.shape[-1]
    c = config("outer", m)
    chunk = max(c.depth, power_of_two(8 * m))
    chunks = entries // chunk
    partial = torch.zeros(chunks, p, dtype=torch.float32, device=out.device)
    tile: dict[str, Any] = dict(
        config=c, UNITS=c.rows, M=min(c.columns, power_of_two(m)), CHUNK=chunk
    )
    launch(
        outer_chunks_kernel, (ceil_div(chunks, c.rows),),
        lists.unit, lists.row, lists.coefficient, index, value, partial, entries, m, p, **tile,
    )  # fmt: skip
    launch(
        outer_kernel, (ceil_div(units, c.rows),),
        lists.start, lists.row, lists.coefficient, index, value, partial, out, units, m, p, **tile,
    )  # fmt: skip
