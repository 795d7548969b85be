"""The whole encoder: z_1 = h(x W'), z_{k+1} = h(x W' + z_k S'), in one launch for p <= 1024.

A program owns the whole rows [ROWS, p] of a tile: x W' and the accumulator stay in registers over
all stages, S' is streamed from L2, no pre-activation leaves the chip (but those that encode_l0
saves for training). z_k comes back as the left operand of the next product, slice by slice, from a
scratch of the program's own rows, [ROWS, p] float32: as many programs run as the device holds, each
over many tiles, so the scratch is small, stays in L2, and serves any batch. (Cutting the slices out
of the register tile instead costs p / DEPTH masked sums over it and as many passes through shared
memory.) A barrier stands between the stores and the loads of the scratch, and between the loads
and the next stores.

Bytes from DRAM per row: n and the result. Flops: 2 p (n + (K - 1) p). Bytes from L2 per tile of
rows: p (n + (K - 1) p) elements. Beyond p = 1024 the stages are separate launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, launch, power_of_two
from .product import add_product, by_pytorch, depth, precision
from .select import magnitude_key, selected, selection
from .stage import threshold_tiles
from .table import Config, resident_programs, whole_rows
from .thresholds import apply_threshold

# The longest rows of a program; beyond, registers and shared memory no longer hold them.
FUSED_P = 1024


@triton.jit
def stage_product(
    k, x_ptr, x_rows, x_inside, x_step, w_ptr, w_columns, w_step, n,
    z_ptr, z_rows, s_ptr, s_columns, s_step, p, real,
    X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x W' in the first stage (k = 0), z S' in the others.

    Loops of no step instead of branches: a tile that crosses a branch is held in two layouts.
    """
    u = add_product(
        tl.zeros((ROWS, COLUMNS), tl.float32), x_ptr, x_rows, x_inside, x_step,
        w_ptr, w_columns, real, w_step, tl.where(k == 0, n, 0), DEPTH, X_PRECISION,
    )  # fmt: skip
    return add_product(
        u, z_ptr, z_rows, z_rows >= 0, 1, s_ptr, s_columns, real, s_step, tl.where(k == 0, 0, p),
        DEPTH, Z_PRECISION,
    )  # fmt: skip


@triton.jit
def store_selection(
    u_ptr, z_ptr, bounds_ptr, row_inside, p, values_ptr, indices_ptr, m, dense, sparse,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICE: tl.constexpr,
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
    x_ptr, w_ptr, s_ptr, scratch_ptr, bounds_ptr,
    values_ptr, indices_ptr, saved_values_ptr, saved_indices_ptr,
    batch, n, p, m, stages, x_row, x_step, w_row, w_step, s_stage, s_row, s_step,
    SAVE: tl.constexpr, X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    real = columns < p
    tile_at = r[:, None] * COLUMNS + columns[None, :]
    # Tiles of the scratch: x W', u of the later stages, z.
    wx_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (3 * ROWS * COLUMNS)
    z_ptr = wx_ptr + 2 * ROWS * COLUMNS
    bounds_ptr += tl.program_id(0) * (2 * ROWS)
    for tile in range(tl.program_id(0), tl.cdiv(batch, ROWS), tl.num_programs(0)):
        first_row = tl.cast(tile, tl.int64) * ROWS
        inside = first_row + r < batch
        for k in range(stages):
            u = stage_product(
                k, x_ptr + first_row * x_row, r * x_row, inside, x_step,
                w_ptr, columns * w_row, w_step, n, z_ptr, r * COLUMNS,
                s_ptr + tl.cast(k - 1, tl.int64) * s_stage, columns * s_row, s_step, p, real,
                X_PRECISION, Z_PRECISION, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            u += tl.load(wx_ptr + tile_at, mask=(tile_at >= 0) & (k > 0), other=0.0)
            u_ptr = wx_ptr + tl.where(k == 0, 0, ROWS * COLUMNS)
            tl.store(u_ptr + tile_at, u)
            t, end = selection(tl.where(real[None, :], magnitude_key(u), -1), columns, m)
            # By way of memory: in registers they would be computed once for each layout.
            tl.store(bounds_ptr + r, t)
            tl.store(bounds_ptr + ROWS + r, end)
            tl.debug_barrier()  # u is written; z is read, now it may be overwritten
            if k + 1 == stages:
                at_m = first_row * m
                store_selection(
                    u_ptr, z_ptr, bounds_ptr, inside, p, values_ptr + at_m, indices_ptr + at_m, m,
                    False, True, ROWS, COLUMNS, SLICE,
                )  # fmt: skip
            else:
                at_m = (tl.cast(k, tl.int64) * batch + first_row) * m
                store_selection(
                    u_ptr, z_ptr, bounds_ptr, inside, p,
                    saved_values_ptr + at_m, saved_indices_ptr + at_m, m,
                    True, SAVE, ROWS, COLUMNS, SLICE,
                )  # fmt: skip
            tl.debug_barrier()  # z is written; u is read, now it may be overwritten


@triton.jit
def encode_l0_fwd_kernel(
    x_ptr, w_ptr, s_ptr, theta_ptr, scratch_ptr, out_ptr, saved_ptr,
    batch, n, p, stages, sigma, x_row, x_step, w_row, w_step, s_stage, s_row, s_step,
    theta_stage, theta_step,
    KIND: tl.constexpr, RAMP: tl.constexpr, SAVE: tl.constexpr,
    X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    real = columns < p
    # Tiles of the scratch: x W', z S' of the later stages, z.
    wx_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (3 * ROWS * COLUMNS)
    z_ptr = wx_ptr + 2 * ROWS * COLUMNS
    for tile in range(tl.program_id(0), tl.cdiv(batch, ROWS), tl.num_programs(0)):
        first_row = tl.cast(tile, tl.int64) * ROWS
        inside = (first_row + r < batch)[:, None]
        for k in range(stages):
            product = stage_product(
                k, x_ptr + first_row * x_row, r * x_row, first_row + r < batch, x_step,
                w_ptr, columns * w_row, w_step, n, z_ptr, r * COLUMNS,
                s_ptr + tl.cast(k - 1, tl.int64) * s_stage, columns * s_row, s_step, p, real,
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
                z = apply_threshold(u, theta[None, :], sigma, KIND, RAMP)
                if k + 1 == stages:
                    out = z.to(out_ptr.dtype.element_ty)
                    tl.store(out_ptr + at, out, mask=inside & here)
                else:
                    tl.store(z_ptr + tile_at, z)
            tl.debug_barrier()  # z is written; u is read, now it may be overwritten


def encode_l0(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    theta: Tensor,
    num_stages: int,
    sigma: float,
    kind: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::encode_l0``."""
    if by_pytorch(W):
        from . import encode_dense

        return encode_dense.encode_l0(x, W, S, theta, num_stages, sigma, kind, save)
    (batch, n), p = x.shape, W.shape[0]
    saved = x.new_empty((num_stages if save else 0, batch, p), dtype=torch.float32)
    z = x.new_empty((batch, p))
    theta = theta.contiguous()
    if p > FUSED_P:
        _encode_l0_by_stages(x, W, S, theta, sigma, kind, z, saved, num_stages)
        return z, saved
    W = within_32_bits(W)
    s, strides = matrix_and_strides(x, None if S is None else within_32_bits(S))
    mode = precision(torch.float32, s)
    c = whole_rows(mode, p)
    x = within_32_bits(x, c.rows)
    grid, scratch = _programs(x, p, c)
    launch(
        encode_l0_fwd_kernel, grid, x, W, s, theta, scratch, z, saved,
        batch, n, p, num_stages, sigma, *x.stride(), *W.stride(), *strides,
        p if theta.dim() == 2 else 0, min(theta.dim(), 1),
        config=c, KIND=kind, RAMP=sigma > 0, SAVE=save,
        X_PRECISION=precision(x.dtype, W), Z_PRECISION=mode,
        ROWS=c.rows, COLUMNS=padded(p), DEPTH=depth(c, x), SLICE=min(64, padded(p)),
    )  # fmt: skip
    return z, saved


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, m: int, num_stages: int, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Serves ``deepl0::encode_top_m``."""
    (batch, n), p = x.shape, W.shape[0]
    if p > FUSED_P:
        from . import encode_large

        return encode_large.encode_top_m(x, W, S, m, num_stages, save)
    before = (num_stages - 1 if save else 0, batch, m)
    values = x.new_empty((batch, m))
    indices = x.new_empty((batch, m), dtype=torch.int64)
    saved_values = x.new_empty(before, dtype=torch.float32)
    saved_indices = x.new_empty(before, dtype=torch.int64)
    if m == 0:
        return values, indices, saved_values, saved_indices
    W = within_32_bits(W)
    s, strides = matrix_and_strides(x, None if S is None else within_32_bits(S))
    mode = precision(torch.float32, s)
    c = whole_rows(mode, p)
    x = within_32_bits(x, c.rows)
    grid, scratch = _programs(x, p, c)
    bounds = torch.empty(grid[0] * 2 * c.rows, dtype=torch.int32, device=x.device)
    launch(
        encode_top_m_fwd_kernel, grid, x, W, s, scratch, bounds,
        values, indices, saved_values, saved_indices,
        batch, n, p, m, num_stages, *x.stride(), *W.stride(), *strides,
        config=c, SAVE=save and num_stages > 1,
        X_PRECISION=precision(x.dtype, W), Z_PRECISION=mode,
        ROWS=c.rows, COLUMNS=padded(p), DEPTH=depth(c, x), SLICE=min(64, padded(p)),
    )  # fmt: skip
    return values, indices, saved_values, saved_indices


def _encode_l0_by_stages(x, W, S, theta, sigma, kind, z, saved, num_stages) -> None:
    """The stages as separate launches; the first leaves x W', which the others start from."""
    save = saved.shape[0] > 0
    wx = saved[0] if save else None
    if wx is None and num_stages > 1:
        wx = torch.empty(z.shape, dtype=torch.float32, device=x.device)
    h: dict = dict(sigma=sigma, kind=kind)
    out = z if num_stages == 1 else torch.empty(z.shape, dtype=torch.float32, device=x.device)
    threshold_tiles(out, wx, x=x, W=W, theta=of_stage(theta, 0, 2), **h)
    for k in range(1, num_stages):
        code, out = out, z if k + 1 == num_stages else torch.empty_like(out)
        threshold_tiles(
            out, saved[k] if save else None, wx=wx, z=code, S=of_stage(S, k - 1),
            theta=of_stage(theta, k, 2), **h,
        )  # fmt: skip


def of_stage(t: Tensor, k: int, dim: int = 3) -> Tensor:
    """What stage k uses of a tensor shared by the stages or, with ``dim`` dimensions, one each."""
    return t[k] if t.dim() == dim else t


def padded(p: int) -> int:
    return max(16, power_of_two(p))


def _programs(x: Tensor, p: int, c: Config) -> tuple[tuple[int], Tensor]:
    """The grid, and the programs' scratch: three tiles each."""
    programs = min(ceil_div(x.shape[0], c.rows), resident_programs(x.device))
    size = 3 * programs * c.rows * padded(p)
    return (programs,), torch.empty(size, dtype=torch.float32, device=x.device)


def within_32_bits(t: Tensor, rows: int | None = None) -> Tensor:
    """``t`` if offsets within ``rows`` rows (all) of a matrix fit 32 bits; else, oddly, a copy."""
    extent = (t.shape[-2] if rows is None else rows, t.shape[-1])
    reach = sum(n * abs(stride) for n, stride in zip(extent, t.stride()[-2:], strict=True))
    return t if reach < 1 << 31 else t.contiguous()


def matrix_and_strides(x: Tensor, S: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
    """S and its strides (stage, row, column); with a single stage nothing is read."""
    if S is None:
        return x, (0, 0, 0)
    return S, (S.stride(0) if S.dim() == 3 else 0, S.stride(-2), S.stride(-1))
