"""One stage, h(x W' + b + z S'): both products in one accumulator, h in the epilogue.

``threshold_stage`` tiles rows and columns, for any p. ``top_m_stage`` needs whole rows: a program
owns [ROWS, p] up to p = 1024; beyond, the pre-activations go through memory once, to the selection.

Flops 2 B p (n + p). Bytes from DRAM: the operands and the result (and the pre-activations, if
saved); from L2 each row of W and S once per tile of rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table
from .launch import ceil_div, contiguous, launch, padded
from .product import add_product, depth, precision, start
from .select import magnitude_key, positive_part, selected, selection
from .table import config, whole_rows
from .thresholds import apply_threshold, function


@triton.jit
def threshold_stage_fwd_kernel(
    x_ptr, w_ptr, wx_ptr, z_ptr, s_ptr, bias_ptr, theta_ptr, out_ptr, u_ptr,
    batch, n, p, sigma, x_row, x_step, w_row, w_step, z_row, z_step, s_row, s_step, theta_step,
    KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr,
    WITH_X: tl.constexpr, WITH_WX: tl.constexpr, WITH_Z: tl.constexpr,
    SAVE: tl.constexpr, OUT: tl.constexpr,
    X_PRECISION: tl.constexpr, Z_PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # Programs that share columns of W and S run side by side, so these are read from DRAM once.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < batch
    real = columns < p
    here = inside[:, None] & real[None, :]
    at = rows[:, None] * p + columns[None, :]
    u = start(bias_ptr, columns, real, ROWS)
    if WITH_X:
        u = add_product(
            u, x_ptr, rows * x_row, inside, x_step, w_ptr, columns * w_row, real, w_step, n,
            DEPTH, X_PRECISION,
        )  # fmt: skip
    if WITH_Z:
        u = add_product(
            u, z_ptr, rows * z_row, inside, z_step, s_ptr, columns * s_row, real, s_step, p,
            DEPTH, Z_PRECISION,
        )  # fmt: skip
    if WITH_WX:
        u += tl.load(wx_ptr + at, mask=here, other=0.0)
    if SAVE:
        tl.store(u_ptr + at, u, mask=here)
    if OUT:
        theta = tl.load(theta_ptr + columns * theta_step, mask=real, other=1.0)
        out = apply_threshold(u, theta[None, :], sigma, KIND, POSITIVE, RAMP)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def top_m_stage_fwd_kernel(
    x_ptr, w_ptr, z_ptr, s_ptr, bias_ptr, out_ptr, mask_ptr,
    batch, n, p, m, x_row, x_step, w_row, w_step, z_row, z_step, s_row, s_step,
    POSITIVE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = rows < batch
    real = columns < p
    u = add_product(
        start(bias_ptr, columns, real, ROWS), x_ptr, rows * x_row, inside, x_step,
        w_ptr, columns.to(tl.int64) * w_row, real, w_step, n, DEPTH, PRECISION,
    )  # fmt: skip
    u = add_product(
        u, z_ptr, rows * z_row, inside, z_step,
        s_ptr, columns.to(tl.int64) * s_row, real, s_step, p, DEPTH, PRECISION,
    )  # fmt: skip
    if POSITIVE:
        u = positive_part(u)
    keys = tl.where(real[None, :], magnitude_key(u), -1)
    t, end = selection(keys, columns, m)
    keep = selected(keys, columns, t, end)
    if POSITIVE:  # a zero passes no gradient
        keep = keep & (keys > 0)
    out = tl.where(keep, u, 0.0).to(out_ptr.dtype.element_ty)
    here = inside[:, None] & real[None, :]
    tl.store(out_ptr + rows[:, None] * p + columns[None, :], out, mask=here)
    # Entry j is bit j % 8 of byte j // 8.
    bits = tl.reshape(keep.to(tl.int32), (ROWS, COLUMNS // 8, 8)) << tl.arange(0, 8)[None, None, :]
    byte = tl.arange(0, COLUMNS // 8)
    bytes_of_row = tl.cdiv(p, 8)
    tl.store(
        mask_ptr + rows[:, None] * bytes_of_row + byte[None, :],
        tl.sum(bits, axis=2).to(tl.uint8),
        mask=inside[:, None] & (byte < bytes_of_row)[None, :],
    )


def threshold_tiles(
    out: Tensor | None,
    u: Tensor | None,
    *,
    x: Tensor | None = None,
    W: Tensor | None = None,
    wx: Tensor | None = None,
    z: Tensor | None = None,
    S: Tensor | None = None,
    bias: Tensor | None = None,
    theta: Tensor | None = None,
    sigma: float = 0.0,
    kind: str = "hard",
) -> None:
    """Launch u = x W' + wx + z S' + b (of those given) and out = h(u), each stored where asked for.

    ``wx``, ``out`` and ``u`` are contiguous [B, p], wx and u in float32.
    """
    batch, p = _first(out, u).shape
    c = config("threshold_stage", p)
    given: Any = _first(x, z)
    launch(
        threshold_stage_fwd_kernel, (ceil_div(batch, c.rows), ceil_div(p, c.columns)),
        x, W, wx, z, S, bias, theta, out, u, batch, 0 if x is None else x.shape[1], p, sigma,
        *_strides(x), *_strides(W), *_strides(z), *_strides(S),
        0 if theta is None else theta.dim(),
        config=c, **function(kind, sigma), WITH_X=x is not None, WITH_WX=wx is not None,
        WITH_Z=z is not None, SAVE=u is not None, OUT=out is not None,
        X_PRECISION="" if W is None else precision(given.dtype, W),
        Z_PRECISION="" if S is None or z is None else precision(z.dtype, S),
        ROWS=c.rows, COLUMNS=c.columns, DEPTH=depth(c, given),
    )  # fmt: skip


def threshold_stage(
    x: Tensor, W: Tensor, z: Tensor, S: Tensor, bias: Tensor | None, theta: Tensor, sigma: float,
    kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::threshold_stage``."""
    batch, p = z.shape
    out = x.new_empty((batch, p))
    u = x.new_empty((batch if save else 0, p), dtype=torch.float32)
    threshold_tiles(
        out, u if save else None, x=x, W=W, z=z, S=S, bias=contiguous(bias),
        theta=theta.contiguous(), sigma=sigma, kind=kind,
    )  # fmt: skip
    return out, u


def top_m_stage(
    x: Tensor, W: Tensor, z: Tensor, S: Tensor, bias: Tensor | None, m: int, positive: bool
) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::top_m_stage``."""
    (batch, n), p, bias = x.shape, W.shape[0], contiguous(bias)
    if p > table.FUSED_P:
        u = torch.empty((batch, p), dtype=torch.float32, device=x.device)
        threshold_tiles(None, u, x=x, W=W, z=z, S=S, bias=bias)
        kept, mask = torch.ops.deepl0.keep_top_m(u, m, positive)
        return kept.to(x.dtype), mask
    out = x.new_empty((batch, p))
    mask = x.new_empty((batch, ceil_div(p, 8)), dtype=torch.uint8)
    mode = precision(x.dtype, W)
    c = whole_rows(mode, p)
    launch(
        top_m_stage_fwd_kernel, (ceil_div(batch, c.rows),), x, W, z, S, bias, out, mask,
        batch, n, p, m, *x.stride(), *W.stride(), *z.stride(), *S.stride(),
        config=c, POSITIVE=positive, PRECISION=mode,
        ROWS=c.rows, COLUMNS=padded(p), DEPTH=depth(c, x),
    )  # fmt: skip
    return out, mask


def _first(*tensors: Tensor | None) -> Tensor:
    return next(t for t in tensors if t is not None)


def _strides(t: Tensor | None) -> tuple[int, int]:
    return (0, 0) if t is None else (t.stride(0), t.stride(1))
