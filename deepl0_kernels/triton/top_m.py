"""max_M pooling and unpooling: top_m, keep_top_m, unpool, apply_mask.

A row of up to 8192 entries is read once into registers, its cut found by counting (``select``),
and the kept entries are written at their rank: N p elements read, N m values and indices (or N p
elements and N p / 8 bytes of mask) written, about 2 (3 + log2 p) N p integer operations.

A longer row is a tournament while 4 m fits in a segment: every segment of up to 8192 entries
yields its m largest, and the candidates of a row, which lie in the order of their indices, are
selected from again. The row is read once; the candidates add at most a third of the work. With
more entries to keep, the row is counted digit by digit (``radix``): 5 reads, 3 for half types.

A stage of an encoder selects from a sum, with m rows of S' among its terms (from L2): the program
that selects from a row or a segment forms the sum of it, which goes to memory for radix alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import decode
from .launch import ceil_div, launch
from .radix import UNIT, pack_bits, segment_bounds, select_by_radix
from .select import keep_mask, magnitude_key, positive_part
from .table import FEW_PROGRAMS, config

_LOW = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def top_m_fwd_kernel(
    u_ptr, more_ptr, bias_ptr, code_value_ptr, code_index_ptr, s_ptr, source_ptr,
    values_ptr, indices_ptr, n, p, m, u_stride, segments, entries, s_row, s_column,
    SPLIT: tl.constexpr, POSITIVE: tl.constexpr, LOW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Values and indices of the m largest of each segment of each row of u, or of the sum

        u + more + bias + sum_j value[j] S[:, index[j]]

    of those that are not None, in ascending j; of a sum the values are rounded to LOW. An entry's
    index is its column, or what ``source`` [n, p] holds there.
    """
    pid = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    if SPLIT:
        segment = pid % segments
        rows = pid // segments * ROWS + tl.arange(0, ROWS)
        first, end = segment_bounds(segment, segments, p)
        length = (end - first).to(tl.int32)
        out = (rows * segments + segment) * m
    else:
        rows = pid * ROWS + tl.arange(0, ROWS)
        first = 0
        length = p
        out = rows * m
    live = rows < n
    real = columns < length
    inside = live[:, None] & real[None, :]
    at = (rows * u_stride + first)[:, None] + columns[None, :]
    u = tl.load(u_ptr + at, mask=inside, other=0.0)
    if more_ptr is not None:
        u += tl.load(more_ptr + at, mask=inside, other=0.0)
    if bias_ptr is not None:
        u += tl.load(bias_ptr + first + columns, mask=real, other=0.0).to(tl.float32)[None, :]
    if s_ptr is not None:
        s_ptr += (first + columns.to(tl.int64))[None, :] * s_column
        for j in tl.range(0, entries, loop_unroll_factor=4):  # as many rows of S' under way
            index = tl.load(code_index_ptr + rows * entries + j, mask=live, other=0)
            value = tl.load(code_value_ptr + rows * entries + j, mask=live, other=0.0)
            s = tl.load(s_ptr + index[:, None] * s_row, mask=inside, other=0.0)
            u += value.to(tl.float32)[:, None] * s.to(tl.float32)
    if POSITIVE:
        u = positive_part(u)
    keep = keep_mask(tl.where(inside, magnitude_key(u), -1), m) & inside
    rank = tl.cumsum(keep.to(tl.int32), axis=1) - 1
    if LOW is not None:
        u = u.to(LOW)
    tl.store(values_ptr + out[:, None] + rank, u.to(values_ptr.dtype.element_ty), mask=keep)
    if source_ptr is not None:
        at = (rows * p + first)[:, None] + columns[None, :]
        index = tl.load(source_ptr + at, mask=keep, other=0)
    else:
        index = tl.broadcast_to((first + columns).to(tl.int64)[None, :], (ROWS, COLUMNS))
    tl.store(indices_ptr + out[:, None] + rank, index, mask=keep)


@triton.jit
def keep_top_m_fwd_kernel(
    u_ptr, out_ptr, mask_ptr, n, p, m, u_stride,
    POSITIVE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Dense rows with all but the m largest set to zero, and the packed mask of the kept, where
    POSITIVE of those that are not 0."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows[:, None] < n) & (columns < p)[None, :]
    u = tl.load(u_ptr + rows[:, None] * u_stride + columns[None, :], mask=inside, other=0.0)
    if POSITIVE:
        u = positive_part(u)
    keep = keep_mask(tl.where(inside, magnitude_key(u), -1), m) & inside
    if POSITIVE:
        keep = keep & (magnitude_key(u) > 0)
    out = tl.where(keep, u, tl.zeros_like(u))
    tl.store(out_ptr + rows[:, None] * p + columns[None, :], out, mask=inside)
    bytes_ = tl.arange(0, COLUMNS // 8)
    row_bytes = (p + 7) // 8
    inside = (rows[:, None] < n) & (bytes_ < row_bytes)[None, :]
    tl.store(mask_ptr + rows[:, None] * row_bytes + bytes_[None, :], pack_bits(keep), mask=inside)


@triton.jit
def unpool_fwd_kernel(
    values_ptr, indices_ptr, out_ptr, mask_ptr, n, p, m, tiles,
    PACK: tl.constexpr, POSITIVE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of dense rows: zeros, then the values whose indices fall in the tile.

    PACK also writes the packed mask, where POSITIVE of the values that are not 0; it needs
    ascending, distinct indices.
    """
    pid = tl.program_id(0).to(tl.int64)
    rows = pid // tiles * ROWS + tl.arange(0, ROWS)
    first = pid % tiles * COLUMNS
    end = tl.minimum(first + COLUMNS, p)
    live = rows[:, None] < n
    columns = first + tl.arange(0, COLUMNS)
    zeros = tl.zeros((ROWS, COLUMNS), out_ptr.dtype.element_ty)
    tl.store(
        out_ptr + rows[:, None] * p + columns[None, :], zeros, mask=live & (columns < end)[None, :]
    )
    row_bytes = (p + 7) // 8
    if PACK:
        bytes_ = first // 8 + tl.arange(0, COLUMNS // 8)
        tl.store(
            mask_ptr + rows[:, None] * row_bytes + bytes_[None, :],
            tl.zeros((ROWS, COLUMNS // 8), tl.uint8),
            mask=live & (bytes_ < tl.cdiv(end, 8))[None, :],
        )
    tl.debug_barrier()  # other threads of the program overwrite these zeros
    for start in range(0, m, DEPTH):
        k = start + tl.arange(0, DEPTH)
        listed = live & (k < m)[None, :]
        at = rows[:, None] * m + k[None, :]
        index = tl.load(indices_ptr + at, mask=listed, other=-1)
        here = (index >= first) & (index < end)  # what is out of range is nowhere
        value = tl.load(values_ptr + at, mask=here, other=0.0)
        value = value.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + rows[:, None] * p + index, value, mask=here)
        if PACK:
            # The entries of one byte are neighbours in the list: the first writes the byte.
            before = tl.load(indices_ptr + at - 1, mask=here & (k > 0)[None, :], other=-8)
            byte = tl.zeros((ROWS, DEPTH), tl.int32)
            for d in tl.static_range(8):
                near = here & (k + d < m)[None, :]
                other = tl.load(indices_ptr + at + d, mask=near, other=-8)
                bit = (1 << (other & 7)).to(tl.int32)
                if POSITIVE:
                    other_value = tl.load(values_ptr + at + d, mask=near, other=0.0)
                    bit = tl.where(magnitude_key(other_value) > 0, bit, 0)
                byte |= tl.where(other >> 3 == index >> 3, bit, 0)
            writes = here & (before >> 3 != index >> 3)
            tl.store(mask_ptr + rows[:, None] * row_bytes + (index >> 3), byte.to(tl.uint8), writes)


@triton.jit
def apply_mask_fwd_kernel(
    u_ptr, mask_ptr, out_ptr, n, p, u_stride, tiles,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    rows = pid // tiles * ROWS + tl.arange(0, ROWS)
    columns = pid % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < n) & (columns < p)[None, :]
    row_bytes = (p + 7) // 8
    at = rows[:, None] * row_bytes + (columns >> 3)[None, :]
    byte = tl.load(mask_ptr + at, mask=inside, other=0).to(tl.int32)
    kept = (byte >> (columns & 7).to(tl.int32)[None, :]) & 1 != 0
    u = tl.load(u_ptr + rows[:, None] * u_stride + columns[None, :], mask=inside & kept, other=0.0)
    tl.store(out_ptr + rows[:, None] * p + columns[None, :], u, mask=inside)


class Gather(NamedTuple):
    """z S' of a sparse z: contiguous values and indices [n, entries], and S [p, p]."""

    values: Tensor
    indices: Tensor
    S: Tensor


def top_m(u: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::top_m``: values and ascending int64 indices [..., m]."""
    values = u.new_empty((*u.shape[:-1], m))
    indices = u.new_empty((*u.shape[:-1], m), dtype=torch.int64)
    if values.numel():
        select(rows_of(u), positive, values, indices)
    return values, indices


def select(
    u: Tensor, positive: bool, values: Tensor, indices: Tensor, *, low: torch.dtype | None = None,
    more: Tensor | None = None, bias: Tensor | None = None, gather: Gather | None = None,
) -> None:  # fmt: skip
    """The m >= 1 largest of each row of u [n, p] into values and indices [.., m], contiguous.

    Of a stage of an encoder those of u + more [n, p] + bias [p] + z S', with values rounded to
    ``low``; u is contiguous float32."""
    (n, p), m = u.shape, values.shape[-1]
    kernel = "top_m" if gather is None else "gather_top_m"
    longest = config(kernel, p).columns
    if p > longest and 4 * m > longest:
        select_by_radix(_sum(u, more, bias, gather), m, positive, values, indices)
        if low is not None and low != values.dtype:
            values.copy_(values.to(low))
        return
    terms: dict[str, Any] = dict(more=more, bias=bias, gather=gather)
    source = None
    while p > longest:
        # Few rows: shorter segments, so more programs.
        few = n * ceil_div(p, longest) < FEW_PROGRAMS and 32 * m <= longest
        c = config(kernel, longest // 4 if few else longest)
        segments = ceil_div(ceil_div(p, UNIT.value), c.columns // UNIT.value)
        best = u.new_empty((n, segments * m))
        where = indices.new_empty((n, segments * m))
        _select(u, source, best, where, m, positive, segments, c, **terms)
        u, source, p, kernel, terms = best, where, segments * m, "top_m", {}
    c = config(kernel, p)
    _select(u, source, values, indices, m, positive, 1, c, low=low, **terms)


def _select(
    u, source, values, indices, m, positive, segments, c, low=None, more=None, bias=None,
    gather=None,
) -> None:  # fmt: skip
    n, p = u.shape
    code = (None, None, None) if gather is None else gather
    entries, (s_column, s_row) = 0, (0, 0)
    if gather is not None:
        entries, (s_column, s_row) = gather.values.shape[1], gather.S.stride()
    launch(
        top_m_fwd_kernel, (ceil_div(n, c.rows) * segments,),
        u, more, bias, *code, source, values, indices, n, p, m, u.stride(0), segments,
        entries, s_row, s_column,
        config=c, SPLIT=segments > 1, POSITIVE=positive, LOW=_LOW.get(low),
        ROWS=c.rows, COLUMNS=c.columns,
    )  # fmt: skip


def _sum(u: Tensor, more: Tensor | None, bias: Tensor | None, gather: Gather | None) -> Tensor:
    """The sum of a stage in memory: of rows that no program can hold and keep many entries."""
    for term in (more, bias):
        if term is not None:
            u = u + term
    if gather is None:
        return u
    out = torch.empty_like(u)
    decode.gather_sum(*gather, out)
    return out.add_(u)


def keep_top_m(u: Tensor, m: int, positive: bool) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::keep_top_m``: dense [..., p] and the packed mask [..., ceil(p / 8)]."""
    out = u.new_empty(u.shape)
    mask = u.new_empty((*u.shape[:-1], ceil_div(u.shape[-1], 8)), dtype=torch.uint8)
    if not u.numel():
        return out, mask
    c = config("keep_top_m", u.shape[-1])
    if u.shape[-1] <= c.columns:
        u = rows_of(u)
        n, p = u.shape
        launch(
            keep_top_m_fwd_kernel, (ceil_div(n, c.rows),), u, out, mask, n, p, m, u.stride(0),
            config=c, POSITIVE=positive, ROWS=c.rows, COLUMNS=c.columns,
        )  # fmt: skip
    elif 4 * m <= c.columns:
        _unpool(*top_m(u, m, positive), out, mask, positive)
    else:
        select_by_radix(rows_of(u), m, positive, out, mask)
    return out, mask


def unpool(values: Tensor, indices: Tensor, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Serves ``deepl0::unpool``, into ``dtype`` or that of the values. An index out of range is
    dropped, and of equal indices in a row one value is written: a kernel cannot raise, and the host
    does not wait for it."""
    out = values.new_empty((*values.shape[:-1], size), dtype=dtype)
    if out.numel():
        _unpool(values.contiguous(), indices.contiguous(), out, None)
    return out


def _unpool(
    values: Tensor, indices: Tensor, out: Tensor, mask: Tensor | None, positive: bool = False
) -> None:
    p, m = out.shape[-1], values.shape[-1]
    n = out.numel() // p
    c = config("unpool", p)
    tiles = ceil_div(p, c.columns)
    launch(
        unpool_fwd_kernel, (ceil_div(n, c.rows) * tiles,),
        values, indices, out, mask, n, p, m, tiles,
        config=c, PACK=mask is not None, POSITIVE=positive,
        ROWS=c.rows, COLUMNS=c.columns, DEPTH=c.depth,
    )  # fmt: skip


def apply_mask(u: Tensor, mask: Tensor) -> Tensor:
    """Serves ``deepl0::apply_mask``: u where the packed mask has a bit, else 0."""
    out = u.new_empty(u.shape)
    if not u.numel():
        return out
    u, mask = rows_of(u), mask.contiguous()
    n, p = u.shape
    c = config("apply_mask", p)
    tiles = ceil_div(p, c.columns)
    launch(
        apply_mask_fwd_kernel, (ceil_div(n, c.rows) * tiles,),
        u, mask, out, n, p, u.stride(0), tiles,
        config=c, ROWS=c.rows, COLUMNS=c.columns,
    )  # fmt: skip
    return out


def rows_of(u: Tensor) -> Tensor:
    """``u`` as [n, p] with adjacent columns: a view where the strides allow, else a copy."""
    u = u.reshape(-1, u.shape[-1])
    return u if u.stride(1) == 1 else u.contiguous()
