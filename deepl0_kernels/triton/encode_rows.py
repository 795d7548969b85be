"""Encoders whose programs own whole rows [ROWS, p]: all stages in one launch, p <= 1024.

Forward: x W' and the accumulator stay in registers over all stages, S' is streamed from L2, no
pre-activation leaves the chip (but those that encode_l0 saves for training). z_k comes back as the
left operand of the next product, slice by slice, from a scratch of the program's own rows,
[ROWS, p] float32: as many programs run as the device holds, each over many tiles, so the scratch is
small, stays in L2, and serves any batch. (Cutting the slices out of the register tile instead costs
p / DEPTH masked sums over it and as many passes through shared memory.) A barrier stands between
the stores and the loads of the scratch, and between the loads and the next stores.

Bytes from DRAM per row: n and the result. Flops: 2 p (n + (K - 1) p). Bytes from L2 per tile of
rows: p (n + (K - 1) p) elements.

Backward of the M-sparse encoder: a program walks down the stages and writes du and z densely; the
sums over the batch are products by PyTorch (dense_sums.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import dense_sums
from .launch import ceil_div, launch, padded
from .product import add_product, depth, matrix_and_strides, precision, start, within_32_bits
from .select import magnitude_key, positive_part, selected, selection
from .table import resident_programs, whole_rows
from .thresholds import apply_threshold, function
from .tuned import Config


@triton.jit
def stage_product(
    k, x_ptr, x_rows, x_inside, x_step, w_ptr, w_columns, w_step, n, bias_ptr,
    z_ptr, z_rows, s_ptr, s_columns, s_step, p, columns,
    X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x W' + b in the first stage (k = 0), z S' in the others.

    Loops of no step instead of branches: a tile that crosses a branch is held in two layouts.
    """
    real = columns < p
    u = add_product(
        start(bias_ptr, columns, real & (k == 0), ROWS), x_ptr, x_rows, x_inside, x_step,
        w_ptr, w_columns, real, w_step, tl.where(k == 0, n, 0), DEPTH, X_PRECISION,
    )  # fmt: skip
    return add_product(
        u, z_ptr, z_rows, z_rows >= 0, 1, s_ptr, s_columns, real, s_step, tl.where(k == 0, 0, p),
        DEPTH, Z_PRECISION,
    )  # fmt: skip


@triton.jit
def store_selection(
    u_ptr, z_ptr, bounds_ptr, row_inside, p, values_ptr, indices_ptr, m, dense, sparse,
    POSITIVE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """The selection of u [ROWS, COLUMNS] by its bounds, slice by slice: if ``dense`` in place, as
    the code z of the next product; if ``sparse`` as values and ascending indices [ROWS, m]."""
    r = tl.arange(0, ROWS)
    t = tl.load(bounds_ptr + r)
    end = tl.load(bounds_ptr + ROWS + r)
    rank = tl.zeros((ROWS,), tl.int32)
    for first in range(0, p, SLICE):
        columns = first + tl.arange(0, SLICE)
        u = tl.load(u_ptr + r[:, None] * COLUMNS + columns[None, :])
        if POSITIVE:
            u = positive_part(u)
        keys = tl.where((columns < p)[None, :], magnitude_key(u), -1)
        keep = selected(keys, columns, t, end)
        if dense:
            tl.store(z_ptr + r[:, None] * COLUMNS + columns[None, :], tl.where(keep, u, 0.0))
        if sparse:
            at = r[:, None] * m + rank[:, None] + tl.cumsum(keep.to(tl.int32), axis=1) - 1
            here = keep & row_inside[:, None]
            tl.store(values_ptr + at, u.to(values_ptr.dtype.element_ty), mask=here)
            index = tl.broadcast_to(columns[None, :], here.shape).to(tl.int64)
            tl.store(indices_ptr + at, index, mask=here)
        rank += tl.sum(keep.to(tl.int32), axis=1)


@triton.jit
def encode_top_m_fwd_kernel(
    x_ptr, w_ptr, s_ptr, bias_ptr, scratch_ptr, bounds_ptr,
    values_ptr, indices_ptr, saved_values_ptr, saved_indices_ptr,
    batch, n, p, m, stages, x_row, x_step, w_row, w_step, s_stage, s_row, s_step,
    POSITIVE: tl.constexpr, SAVE: tl.constexpr,
    X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    real = columns < p
    tile_at = r[:, None] * COLUMNS + columns[None, :]
    # Tiles of the scratch: x W' + b, u of the later stages, z.
    wx_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (3 * ROWS * COLUMNS)
    z_ptr = wx_ptr + 2 * ROWS * COLUMNS
    bounds_ptr += tl.program_id(0) * (2 * ROWS)
    for tile in range(tl.program_id(0), tl.cdiv(batch, ROWS), tl.num_programs(0)):
        first_row = tl.cast(tile, tl.int64) * ROWS
        inside = first_row + r < batch
        for k in range(stages):
            u = stage_product(
                k, x_ptr + first_row * x_row, r * x_row, inside, x_step,
                w_ptr, columns * w_row, w_step, n, bias_ptr, z_ptr, r * COLUMNS,
                s_ptr + tl.cast(k - 1, tl.int64) * s_stage, columns * s_row, s_step, p, columns,
                X_PRECISION, Z_PRECISION, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            u += tl.load(wx_ptr + tile_at, mask=(tile_at >= 0) & (k > 0), other=0.0)
            u_ptr = wx_ptr + tl.where(k == 0, 0, ROWS * COLUMNS)
            tl.store(u_ptr + tile_at, u)
            if POSITIVE:
                u = positive_part(u)
            t, end = selection(tl.where(real[None, :], magnitude_key(u), -1), columns, m)
            # By way of memory: in registers they would be computed once for each layout.
            tl.store(bounds_ptr + r, t)
            tl.store(bounds_ptr + ROWS + r, end)
            tl.debug_barrier()  # u is written; z is read, now it may be overwritten
            if k + 1 == stages:
                at_m = first_row * m
                store_selection(
                    u_ptr, z_ptr, bounds_ptr, inside, p, values_ptr + at_m, indices_ptr + at_m, m,
                    False, True, POSITIVE, ROWS, COLUMNS, SLICE,
                )  # fmt: skip
            else:
                at_m = (tl.cast(k, tl.int64) * batch + first_row) * m
                store_selection(
                    u_ptr, z_ptr, bounds_ptr, inside, p,
                    saved_values_ptr + at_m, saved_indices_ptr + at_m, m,
                    True, SAVE, POSITIVE, ROWS, COLUMNS, SLICE,
                )  # fmt: skip
            tl.debug_barrier()  # z is written; u is read, now it may be overwritten


@triton.jit
def encode_l0_fwd_kernel(
    x_ptr, w_ptr, s_ptr, bias_ptr, theta_ptr, scratch_ptr, out_ptr, saved_ptr,
    batch, n, p, stages, sigma, x_row, x_step, w_row, w_step, s_stage, s_row, s_step,
    theta_stage, theta_step,
    KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr, SAVE: tl.constexpr,
    X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    # Tiles of the scratch: x W' + b, z S' of the later stages, z.
    wx_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (3 * ROWS * COLUMNS)
    z_ptr = wx_ptr + 2 * ROWS * COLUMNS
    for tile in range(tl.program_id(0), tl.cdiv(batch, ROWS), tl.num_programs(0)):
        first_row = tl.cast(tile, tl.int64) * ROWS
        inside = (first_row + r < batch)[:, None]
        for k in range(stages):
            product = stage_product(
                k, x_ptr + first_row * x_row, r * x_row, first_row + r < batch, x_step,
                w_ptr, columns * w_row, w_step, n, bias_ptr, z_ptr, r * COLUMNS,
                s_ptr + tl.cast(k - 1, tl.int64) * s_stage, columns * s_row, s_step, p, columns,
                X_PRECISION, Z_PRECISION, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            u_ptr = wx_ptr + tl.where(k == 0, 0, ROWS * COLUMNS)
            tl.store(u_ptr + r[:, None] * COLUMNS + columns[None, :], product)
            tl.debug_barrier()  # u is written; z is read, now it may be overwritten
            for first in range(0, p, SLICE):
                some = first + tl.arange(0, SLICE)
                here = (some < p)[None, :]
                tile_at = r[:, None] * COLUMNS + some[None, :]
                at = first_row * p + r[:, None] * p + some[None, :]
                u = tl.load(u_ptr + tile_at)
                u += tl.load(wx_ptr + tile_at, mask=(tile_at >= 0) & (k > 0), other=0.0)
                if SAVE:
                    saved = saved_ptr + tl.cast(k, tl.int64) * batch * p
                    tl.store(saved + at, u, mask=inside & here)
                theta = tl.load(
                    theta_ptr + k * theta_stage + some * theta_step, mask=some < p, other=1.0
                )
                z = apply_threshold(u, theta[None, :], sigma, KIND, POSITIVE, RAMP)
                if k + 1 == stages:
                    out = z.to(out_ptr.dtype.element_ty)
                    tl.store(out_ptr + at, out, mask=inside & here)
                else:
                    tl.store(z_ptr + tile_at, z)
            tl.debug_barrier()  # z is written; u is read, now it may be overwritten


@triton.jit
def encode_top_m_bwd_kernel(
    grad_ptr, indices_ptr, saved_values_ptr, saved_indices_ptr, s_ptr, du_ptr, z_ptr,
    rows, batch, p, m, stages, s_stage, s_row, s_step,
    TOTAL: tl.constexpr, POSITIVE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """du [stages, rows, p] and z [stages - 1, rows, p], which come zeroed; z may be None. At the
    end the first du is the sum over the stages, or without TOTAL of no use. Rows of a code are
    ``m`` apart, its stages ``batch m``. What is 0 of a POSITIVE code is not in its support."""
    r = tl.arange(0, ROWS)
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    inside = first_row + r < rows
    columns = tl.arange(0, COLUMNS)
    real = columns < p
    here = inside[:, None] & real[None, :]
    tile_at = r[:, None] * p + columns[None, :]
    stage_size = tl.cast(rows, tl.int64) * p
    entries = tl.arange(0, ENTRIES)
    top_ptr = du_ptr + (stages - 1) * stage_size + first_row * p
    for first in range(0, m, ENTRIES):
        at = r[:, None] * m + (first + entries)[None, :]
        given = inside[:, None] & (first + entries < m)[None, :]
        index = tl.load(indices_ptr + first_row * m + at, mask=given, other=0).to(tl.int32)
        grad = tl.load(grad_ptr + first_row * m + at, mask=given, other=0.0).to(tl.float32)
        tl.store(top_ptr + r[:, None] * p + index, grad, mask=given)
    tl.debug_barrier()
    for i in range(stages - 1):
        k = stages - 1 - i
        above_ptr = du_ptr + k * stage_size + first_row * p
        below_ptr = above_ptr - stage_size
        # The support of the stage below: its z, and ones where du goes.
        code_at = tl.cast(k - 1, tl.int64) * batch * m + first_row * m
        if z_ptr is not None:
            below_z_ptr = z_ptr + (k - 1) * stage_size + first_row * p
        for first in range(0, m, ENTRIES):
            at = r[:, None] * m + (first + entries)[None, :]
            given = inside[:, None] & (first + entries < m)[None, :]
            index = tl.load(saved_indices_ptr + code_at + at, mask=given, other=0).to(tl.int32)
            if (z_ptr is not None) or POSITIVE:
                value = tl.load(saved_values_ptr + code_at + at, mask=given, other=0.0)
            passing = given
            if POSITIVE:
                passing = given & (magnitude_key(value) > 0)
            tl.store(below_ptr + r[:, None] * p + index, 1.0, mask=passing)
            if z_ptr is not None:
                tl.store(below_z_ptr + r[:, None] * p + index, value, mask=given)
        length = p if TOTAL else tl.where(k == 1, 0, p)
        g = add_product(
            tl.zeros((ROWS, COLUMNS), tl.float32), above_ptr, r * p, inside, 1,
            s_ptr + tl.cast(k - 1, tl.int64) * s_stage, columns * s_step, real, s_row, length,
            DEPTH, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # the ones are written
        du = tl.where(tl.load(below_ptr + tile_at, mask=here, other=0.0) != 0.0, g, 0.0)
        tl.debug_barrier()  # the ones are read
        tl.store(below_ptr + tile_at, du, mask=here)
        tl.debug_barrier()
    # The sum over the stages, by slices: nothing of it is held over the products.
    if TOTAL:  # noqa: SIM102 - known to the compiler, unlike the other
        if stages > 1:
            for first in range(0, p, ENTRIES):
                some = first + entries
                mask = inside[:, None] & (some < p)[None, :]
                at = first_row * p + r[:, None] * p + some[None, :]
                total = tl.load(du_ptr + at, mask=mask, other=0.0)
                for k in range(1, stages):
                    total += tl.load(du_ptr + k * stage_size + at, mask=mask, other=0.0)
                tl.store(du_ptr + at, total, mask=mask)


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, theta: Tensor, num_stages: int,
    sigma: float, kind: str, saved: Tensor,
) -> Tensor:  # fmt: skip
    """z of the last stage; the pre-activations into ``saved`` [K, B, p], unless that is empty."""
    (batch, n), p = x.shape, W.shape[0]
    z = x.new_empty((batch, p))
    x, W, s, strides, c, modes = _operands(x, W, S)
    grid, scratch = _programs(x, p, c)
    launch(
        encode_l0_fwd_kernel, grid, x, W, s, bias, theta, scratch, z, saved,
        batch, n, p, num_stages, sigma, *x.stride(), *W.stride(), *strides,
        p if theta.dim() == 2 else 0, min(theta.dim(), 1),
        config=c, **function(kind, sigma), SAVE=saved.shape[0] > 0, **modes,
        ROWS=c.rows, COLUMNS=padded(p), DEPTH=depth(c, x), SLICE=min(64, padded(p)),
    )  # fmt: skip
    return z


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, num_stages: int, positive: bool,
    values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
) -> None:  # fmt: skip
    """The code [B, m] of the last stage, and [K - 1, B, m] of those before, unless those are
    empty."""
    (batch, n), p, m = x.shape, W.shape[0], values.shape[1]
    x, W, s, strides, c, modes = _operands(x, W, S)
    grid, scratch = _programs(x, p, c)
    bounds = torch.empty(grid[0] * 2 * c.rows, dtype=torch.int32, device=x.device)
    launch(
        encode_top_m_fwd_kernel, grid, x, W, s, bias, scratch, bounds,
        values, indices, saved_values, saved_indices,
        batch, n, p, m, num_stages, *x.stride(), *W.stride(), *strides,
        config=c, POSITIVE=positive, SAVE=saved_values.shape[0] > 0, **modes,
        ROWS=c.rows, COLUMNS=padded(p), DEPTH=depth(c, x), SLICE=min(64, padded(p)),
    )  # fmt: skip


def _operands(x: Tensor, W: Tensor, S: Tensor | None):
    """x, W and S with offsets within 32 bits, the strides of S, the configuration and the modes of
    the products."""
    s, strides = matrix_and_strides(x, None if S is None else within_32_bits(S))
    mode = precision(torch.float32, s)
    c = whole_rows(mode, W.shape[0])
    modes = {"X_PRECISION": precision(x.dtype, W), "Z_PRECISION": mode}
    return within_32_bits(x, c.rows), within_32_bits(W), s, strides, c, modes


def _programs(x: Tensor, p: int, c: Config) -> tuple[tuple[int], Tensor]:
    """The grid, and the programs' scratch: three tiles each."""
    programs = min(ceil_div(x.shape[0], c.rows), resident_programs(x.device))
    size = 3 * programs * c.rows * padded(p)
    return (programs,), torch.empty(size, dtype=torch.float32, device=x.device)


def encode_top_m_backward(
    grad_values: Tensor, indices: Tensor, saved_values: Tensor, saved_indices: Tensor,
    x: Tensor, W: Tensor, S: Tensor | None, positive: bool, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S and the bias, those in the mask, in the dtype of x."""
    (batch, m), p, stages = grad_values.shape, W.shape[0], saved_values.shape[0] + 1
    sums = dense_sums.DenseSums(x, W, S, mask, mask & 8, keep_layout=True)
    s, strides = matrix_and_strides(x, None if S is None else within_32_bits(S))
    mode = precision(torch.float32, s)
    c = whole_rows(mode, p)
    codes = (grad_values, indices, saved_values, saved_indices)
    size = 2 * stages - 1 if sums.need_S else stages
    for rows in dense_sums.chunks(batch, p, size, c.rows):
        count = rows.stop - rows.start
        tiles = torch.zeros((size, count, p), dtype=torch.float32, device=x.device)
        du, z = tiles[:stages], tiles[stages:] if sums.need_S else None
        given = (t[rows] if t.dim() == 2 else t[:, rows] for t in codes)
        launch(
            encode_top_m_bwd_kernel, (ceil_div(count, c.rows),), *given, s, du, z,
            count, batch, p, m, stages, *strides,
            config=c, TOTAL=sums.need_total, POSITIVE=positive, PRECISION=mode,
            ROWS=c.rows, COLUMNS=padded(p), DEPTH=depth(c), ENTRIES=min(64, padded(p)),
        )  # fmt: skip
        sums.add(rows, du[0] if sums.need_total else None, du[1:], z)
    return sums.results()
