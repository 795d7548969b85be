"""The M-sparse encoder for long codes (p beyond 1024): M-sparse throughout, and no [B, p] is ever
written.

Stage kernel, z_{k+1} = top_m(x W' + b + z_k S'): a program owns ROWS rows and a part of the
columns. It loops over tiles [ROWS, COLUMNS] of x W' (a product over n on the matrix units) and lets
what is above the row's running threshold enter the row's buffer of candidates (buffers.py). When a
buffer would overflow, it is cut to its m best, which raises the threshold: in random order column c
enters with probability about m / c, so of most tiles of a first stage little or nothing enters. A
tile of which something does, and in later stages every tile, goes through a scratch of the
program's own in L2 and comes back SUB rows at a time; there the gather-sum of m rows of S' is
added, which leaves the product its registers. Few rows are spread over several parts. Selection
kernel: the m best of the row's buffers, exactly.

Per stage 2 B p n flops and, after the first, 2 B p m; bytes from L2 per tile: (ROWS + COLUMNS) n
elements, and ROWS COLUMNS m of S'. DRAM: W (and S') once per wave of programs, if L2 does not hold
them. Memory: 8 CAPACITY bytes of candidates and 4 COLUMNS of scratch per row and part, for at most
PROGRAMS ROWS of them at a time: 80 MB at m <= 128, whatever B and p, and at most p / 4 candidates
a row.

Backward: with g the gradient of the last values, du_K = g on the support of stage K; going down,
dS_k += du_{k+1} z_k' and du_k = S_k' du_{k+1} on the support of z_k; W x enters every stage, so
dW = sum_b du_b x_b', db = sum_b du_b and dx = du W with du the sum over the stages. Every du has m
entries a row. Flops and gathers per row: du m^2 a step (a sector of 32 bytes each), dS m^2, dW and
dx K m n. dW, db and dS are summed unit by unit (unit_lists.py): deterministic. Memory beyond the
gradients: O(K B m), and a row of n or p per whole chunk of a unit's entries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._matrices import by_columns, stage_matrix
from . import table, unit_lists
from .buffers import admit, load_candidates
from .decode import gather_sum, with_contiguous_atoms
from .launch import ceil_div, launch, power_of_two
from .product import add_product, precision, start
from .select import keep_mask, magnitude_key, positive_part
from .table import config

# Programs of a launch of the stage kernel: several for every multiprocessor of today's GPUs.
PROGRAMS = 512

# The largest key, of NaN: the threshold of rows beyond the batch.
NOTHING = tl.constexpr(0x7F800001)


@triton.jit
def add_gather_sum(
    acc, value_ptr, index_ptr, rows, live, m, s_ptr, s_column, s_index, columns, inside
):
    """acc [ROWS, COLUMNS] + sum_j z[row, j] S[columns, index[row, j]], in ascending j."""
    for j in range(0, m):
        index = tl.load(index_ptr + rows * m + j, mask=live, other=0)
        z = tl.load(value_ptr + rows * m + j, mask=live, other=0.0)
        s = tl.load(
            s_ptr + index[:, None] * s_index + columns[None, :] * s_column,
            mask=live[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        acc += z[:, None] * s.to(tl.float32)
    return acc


@triton.jit
def encode_sparse_fwd_kernel(
    x_ptr, w_ptr, z_value_ptr, z_index_ptr, s_ptr, bias_ptr,
    tile_ptr, value_ptr, index_ptr, state_ptr,
    rows, n, p, m, part, parts, x_row, x_step, w_row, w_step, s_column, s_index,
    GATHER: tl.constexpr, POSITIVE: tl.constexpr, PRECISION: tl.constexpr,
    CAPACITY: tl.constexpr, COMPACT: tl.constexpr,
    SUB: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    local = tl.arange(0, ROWS)
    r = tl.program_id(0).to(tl.int64) * ROWS + local
    live = r < rows
    # From here on everything of the program's own: offsets fit in 32 bits.
    program = tl.program_id(0).to(tl.int64) * parts + tl.program_id(1)
    tile_ptr += program * (ROWS * (COLUMNS + 1))
    value_ptr += program * (ROWS * (CAPACITY + 1))
    index_ptr += program * (ROWS * (CAPACITY + 1))
    state_ptr += program * (ROWS * 2)
    threshold = tl.where(live, -1, NOTHING)
    tl.store(state_ptr + local * 2, tl.zeros((ROWS,), tl.int32))
    tl.store(state_ptr + local * 2 + 1, threshold)
    tl.debug_barrier()
    first = tl.program_id(1) * part
    for begin in range(first, min(first + part, p), COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        inside = columns < p
        u = add_product(
            start(bias_ptr, columns, inside, ROWS), x_ptr, r * x_row, live, x_step,
            w_ptr, columns.to(tl.int64) * w_row, inside, w_step, n, DEPTH, PRECISION,
        )  # fmt: skip
        if not GATHER:
            if POSITIVE:
                u = positive_part(u)
            key = tl.where(columns[None, :] < p, magnitude_key(u), -1)
            # The sign of the difference counts; thresholds are at most NOTHING: no overflow.
            arriving = -tl.sum((threshold[:, None] - key) >> 31, axis=1)
            any_enters = tl.max(arriving, axis=0)
        else:
            any_enters = 1
        if any_enters > 0:
            at = tl.arange(0, COLUMNS)[None, :]
            tl.store(tile_ptr + local[:, None] * (COLUMNS + 1) + at, u)
            tl.debug_barrier()
            for sub in range(0, ROWS, SUB):
                some = sub + tl.arange(0, SUB)
                v = tl.load(tile_ptr + some[:, None] * (COLUMNS + 1) + at)
                if GATHER:
                    b = tl.program_id(0).to(tl.int64) * ROWS + some
                    v = add_gather_sum(
                        v, z_value_ptr, z_index_ptr, b, b < rows, m, s_ptr, s_column, s_index,
                        columns.to(tl.int64), columns < p,
                    )  # fmt: skip
                    if POSITIVE:
                        v = positive_part(v)
                admit(
                    v, columns, p, value_ptr, index_ptr, state_ptr, some, sub, m,
                    CAPACITY, COMPACT,
                )  # fmt: skip
            tl.debug_barrier()
            threshold = tl.load(state_ptr + local * 2 + 1)


@triton.jit
def encode_sparse_select_kernel(
    value_ptr, index_ptr, state_ptr, out_value_ptr, out_index_ptr, rows, m, parts,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The m best of the buffers of a row; BLOCK rows shared a program of the stage kernel."""
    r = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    live = r < rows
    place = tl.arange(0, PLACES)[None, :]
    buffers = (r // BLOCK * parts + place // CAPACITY) * BLOCK + r % BLOCK
    key, value, index = load_candidates(
        value_ptr, index_ptr, state_ptr, buffers, live, place % CAPACITY, CAPACITY
    )
    keep = keep_mask(key, m) & live
    to = r * m + tl.cumsum(keep.to(tl.int32), axis=1) - 1
    tl.store(out_value_ptr + to, value.to(out_value_ptr.dtype.element_ty), mask=keep)
    tl.store(out_index_ptr + to, index.to(tl.int64), mask=keep)


def stage(
    x: Tensor, W: Tensor, z: tuple[Tensor, Tensor] | None, S: Tensor | None, bias: Tensor | None,
    positive: bool, values: Tensor, indices: Tensor,
) -> None:  # fmt: skip
    """values, indices [B, m] = top_m(x W' + b + z S'), z as values and indices [B, m]."""
    (batch, n), p, m = x.shape, W.shape[0], values.shape[1]
    mode = precision(x.dtype, W)
    if mode == "tf32" and table.VERSION < (3, 8) and table.device_class(W.device) == "sm100":
        mode = "ieee"  # that compiler dies of the kernel
    c = config(f"encode_sparse_{mode}", n)
    capacity = power_of_two(m + c.columns)
    places = config("encode_sparse_select", capacity).columns
    parts, blocks = 1, ceil_div(batch, c.rows)
    # A part is several times its buffer, or the selection kernel would be left with the work.
    while (
        2 * parts * blocks <= PROGRAMS
        and 8 * parts * capacity <= p
        and 2 * parts * capacity <= places
    ):
        parts *= 2
    blocks = min(blocks, max(1, PROGRAMS // parts))
    block = blocks * c.rows
    tile = torch.empty(block, parts, c.columns + 1, dtype=torch.float32, device=x.device)
    value = torch.empty(block, parts, capacity + 1, dtype=torch.float32, device=x.device)
    index = torch.empty(block, parts, capacity + 1, dtype=torch.int32, device=x.device)
    state = torch.empty(block, parts, 2, dtype=torch.int32, device=x.device)
    part = c.columns * ceil_div(ceil_div(p, c.columns), parts)
    for first in range(0, batch, block):
        rows = slice(first, min(batch, first + block))
        count = rows.stop - first
        code = (z[0][rows], z[1][rows]) if z else (None, None)
        launch(
            encode_sparse_fwd_kernel, (ceil_div(count, c.rows), parts),
            x[rows], W, *code, S, bias, tile, value, index, state,
            count, n, p, m, part, parts, *x.stride(), *W.stride(),
            *((0, 0) if S is None else S.stride()),
            config=c, GATHER=S is not None, POSITIVE=positive, PRECISION=mode, CAPACITY=capacity,
            COMPACT=min(c.rows // 4, 1024 // capacity), SUB=c.rows // 4,
            ROWS=c.rows, COLUMNS=c.columns, DEPTH=c.depth,
        )  # fmt: skip
        length = parts * capacity
        select = config("encode_sparse_select", length)
        together = places // length
        launch(
            encode_sparse_select_kernel, (ceil_div(count, together),),
            value, index, state, values[rows], indices[rows], count, m, parts,
            config=select, CAPACITY=capacity, BLOCK=c.rows, ROWS=together, PLACES=length,
        )  # fmt: skip


def pays(p: int, m: int) -> bool:
    """Whether codes of m of p entries are multiplied by gathers, and kept in candidate buffers.

    A gather reads 4 m bytes of S' per pre-activation from L2, a dense product takes 2 p flops: by
    the published rates of an H100 (5.5 TB/s, 50 TFLOP/s) they meet at p = 18 m. A buffer holds m
    candidates and a tile's columns in registers.
    """
    return 16 * m <= p and m <= 896


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, num_stages: int, positive: bool,
    values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
) -> None:  # fmt: skip
    """The code [B, m] of the last stage, and [K - 1, B, m] of those before, unless those are
    empty."""
    entries, before = values.numel(), (num_stages - 1, *values.shape)
    if saved_values.shape != before:
        saved_values, saved_indices = saved_values.new_empty(before), indices.new_empty(before)
    codes = [*zip(saved_values, saved_indices, strict=True), (values, indices)]
    step = None
    for k, out in enumerate(codes):
        if S is not None and (k == 1 or (k > 1 and S.dim() == 3)):
            step = with_contiguous_atoms(stage_matrix(S, k - 1), entries)
        stage(x, W, codes[k - 1] if k else None, step, bias, positive, *out)


@triton.jit
def encode_sparse_bwd_kernel(
    du_ptr, index_ptr, s_ptr, below_ptr, out_ptr, m, s_row, s_column,
    BELOW: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """out[row, a] = sum_c du[row, c] S[index[row, c], below[row, a]]."""
    first = tl.program_id(0).to(tl.int64) * m
    a = tl.program_id(1) * BELOW + tl.arange(0, BELOW)
    below = tl.load(below_ptr + first + a, mask=a < m, other=0)
    acc = tl.zeros((BELOW, ENTRIES), tl.float32)
    for begin in range(0, m, ENTRIES):
        c = begin + tl.arange(0, ENTRIES)
        index = tl.load(index_ptr + first + c, mask=c < m, other=0)
        du = tl.load(du_ptr + first + c, mask=c < m, other=0.0)
        s = tl.load(
            s_ptr + index[None, :] * s_row + below[:, None] * s_column,
            mask=(a < m)[:, None] & (c < m)[None, :], other=0.0,
        )  # fmt: skip
        acc += du[None, :] * s.to(tl.float32)
    tl.store(out_ptr + first + a, tl.sum(acc, axis=1), mask=a < m)


def product_on_support(du: Tensor, index: Tensor, S: Tensor, below: Tensor, out: Tensor) -> None:
    """out[b, a] = (S' du_b)[below[b, a]] for the sparse du, at ``index``; all [B, m]."""
    batch, m = du.shape
    c = config("encode_sparse_backward", m)
    rows, columns = (min(size, power_of_two(m)) for size in (c.rows, c.columns))
    launch(
        encode_sparse_bwd_kernel, (batch, ceil_div(m, rows)),
        du, index, S, below, out, m, *S.stride(), config=c, BELOW=rows, ENTRIES=columns,
    )  # fmt: skip


def grad_of_steps(S: Tensor, at: Tensor, du: Tensor, z: Tensor) -> Tensor:
    """dS, in the layout of S: for every step, du of the stage above times z of the one below."""
    steps, _, m = z.shape
    p = S.shape[-1]
    transposed = by_columns(S)
    above, below = (at[1:], du[1:]), (at[:-1], z)
    (unit, coefficient), (index, value) = (below, above) if transposed else (above, below)
    if S.dim() == 3:  # the units of one step after those of another
        unit = unit + p * torch.arange(steps, device=unit.device)[:, None, None]
    out = torch.zeros(S.numel() // p, p, dtype=torch.float32, device=S.device)
    lists = unit_lists.group(unit.reshape(-1, m), coefficient, out.shape[0])
    unit_lists.outer(lists, index.reshape(-1, m), value.reshape(-1, m), out)
    out = out.view(S.shape).to(S.dtype)
    return out.transpose(-2, -1) if transposed else out


def encode_top_m_backward(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, positive: bool, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S and the bias, those in the mask, in the dtype of x."""
    (steps, batch, m), (p, n) = saved_values.shape, W.shape
    need_x, need_W, need_S, need_bias = (mask & bit for bit in (1, 2, 4, 8))
    at = torch.cat((saved_indices, indices[None]))
    du = torch.empty(at.shape, dtype=torch.float32, device=x.device)
    du[steps] = grad_values
    grad_S = x.new_empty(0)
    if S is not None:
        for k in range(steps, 0 if need_x or need_W or need_bias else 1, -1):
            product_on_support(du[k], at[k], stage_matrix(S, k - 1), at[k - 1], du[k - 1])
            if positive:
                du[k - 1].masked_fill_(saved_values[k - 1] == 0, 0.0)
        if need_S:
            grad_S = grad_of_steps(S, at, du, saved_values)
    grad_W, grad_bias = W.new_empty((p, n) if need_W else 0), x.new_empty(p if need_bias else 0)
    if need_W or need_bias:
        lists = unit_lists.group(at.view(-1, m), du, p, rows=batch)
    if need_W:
        unit_lists.combine(lists, x, grad_W)
    if need_bias:
        unit_lists.combine(lists, x.new_ones(1, 1).expand(batch, 1), grad_bias[:, None])
    grad_x = x.new_empty((batch, n) if need_x else 0)
    if need_x:  # the entries of all stages in one row
        values, units = (t.transpose(0, 1).reshape(batch, -1).contiguous() for t in (du, at))
        gather_sum(values, units, W.t(), grad_x)
    return grad_x, grad_W, grad_S, grad_bias
