"""Backward of the encoders.

With g the gradient of z_K, down the stages: du_k = h'(u_k) g (for top-M: g on the support of
stage k), dtheta += sum of g dh/dtheta, dS += du_k' z_{k-1}, g = du_k S; and with du the sum over
the stages dW = du' x, dx = du W.

The kernels write du_k, z_{k-1} and du of a chunk of the batch densely; the sums over the batch are
products by PyTorch, which are deterministic for given shapes, chunk after chunk in order. A chunk
holds about 64 MiB of these, whatever the batch. Flops 2 p (2 (K - 1) p + n (+ n for dx)) a row;
bytes moved 4 p (4 K - 1) a row beside the operands.

encode_l0: one launch per stage and chunk, tiled over rows and columns, for any p: the derivative,
dtheta and z are the epilogue of the product with S. encode_top_m, p <= 1024: one launch per chunk,
a program owns whole rows and walks down the stages; beyond, see encode_large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .encode import FUSED_P, matrix_and_strides, of_stage, padded, within_32_bits
from .launch import ceil_div, launch
from .product import add_product, by_pytorch, precision
from .table import config, whole_rows
from .thresholds import apply_threshold, threshold_derivatives

# Bytes of du, z and their sum that a chunk of the batch may take.
CHUNK_BYTES = 64 << 20


@triton.jit
def encode_top_m_bwd_kernel(
    grad_ptr, indices_ptr, saved_values_ptr, saved_indices_ptr, s_ptr, du_ptr, z_ptr,
    rows, batch, p, m, stages, s_stage, s_row, s_step,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ENTRIES: tl.constexpr,
):  # fmt: skip
    """du [stages, rows, p] and z [stages - 1, rows, p], which come zeroed. At the end the first du
    is the sum over the stages. Rows of a code are ``m`` apart, its stages ``batch m``."""
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
        below_z_ptr = z_ptr + (k - 1) * stage_size + first_row * p
        for first in range(0, m, ENTRIES):
            at = r[:, None] * m + (first + entries)[None, :]
            given = inside[:, None] & (first + entries < m)[None, :]
            index = tl.load(saved_indices_ptr + code_at + at, mask=given, other=0).to(tl.int32)
            value = tl.load(saved_values_ptr + code_at + at, mask=given, other=0.0)
            tl.store(below_ptr + r[:, None] * p + index, 1.0, mask=given)
            tl.store(below_z_ptr + r[:, None] * p + index, value, mask=given)
        g = add_product(
            tl.zeros((ROWS, COLUMNS), tl.float32), above_ptr, r * p, inside, 1,
            s_ptr + tl.cast(k - 1, tl.int64) * s_stage, columns * s_step, real, s_row, p,
            DEPTH, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()  # the ones are written
        du = tl.where(tl.load(below_ptr + tile_at, mask=here, other=0.0) != 0.0, g, 0.0)
        tl.debug_barrier()  # the ones are read
        tl.store(below_ptr + tile_at, du, mask=here)
        tl.debug_barrier()
    # The sum over the stages, by slices: nothing of it is held over the products.
    if stages > 1:
        for first in range(0, p, ENTRIES):
            some = first + entries
            mask = inside[:, None] & (some < p)[None, :]
            at = first_row * p + r[:, None] * p + some[None, :]
            total = tl.load(du_ptr + at, mask=mask, other=0.0)
            for k in range(1, stages):
                total += tl.load(du_ptr + k * stage_size + at, mask=mask, other=0.0)
            tl.store(du_ptr + at, total, mask=mask)


@triton.jit
def encode_l0_bwd_kernel(
    above_ptr, u_ptr, s_ptr, theta_ptr, du_ptr, total_ptr, z_ptr, partial_ptr,
    rows, p, sigma, s_row, s_step, theta_step,
    KIND: tl.constexpr, RAMP: tl.constexpr, FIRST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One stage: g is grad_z (FIRST: the last stage) or du of the stage above times S; then
    du = g h'(u), added to the sum over the stages, z = h(u), and the sums of g dh/dtheta over the
    rows of the tile."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < rows
    real = columns < p
    here = inside[:, None] & real[None, :]
    at = row[:, None] * p + columns[None, :]
    if FIRST:
        g = tl.load(above_ptr + at, mask=here, other=0.0).to(tl.float32)
    else:
        g = add_product(
            tl.zeros((ROWS, COLUMNS), tl.float32), above_ptr, row * p, inside, 1,
            s_ptr, columns * s_step, real, s_row, p, DEPTH, PRECISION,
        )  # fmt: skip
    u = tl.load(u_ptr + at, mask=here, other=0.0)
    theta = tl.load(theta_ptr + columns * theta_step, mask=real, other=1.0)[None, :]
    d_u, d_theta = threshold_derivatives(u, theta, sigma, KIND, RAMP)
    du = g * d_u
    tl.store(du_ptr + at, du, mask=here)
    if FIRST:
        tl.store(total_ptr + at, du, mask=here)
    else:
        total = tl.load(total_ptr + at, mask=here, other=0.0)
        tl.store(total_ptr + at, total + du, mask=here)
        z = apply_threshold(u, theta, sigma, KIND, RAMP)
        tl.store(z_ptr + at, z, mask=here)
    sums = tl.sum(tl.where(here, g * d_theta, 0.0), axis=0)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * p + columns, sums, mask=real)


class _Gradients(NamedTuple):
    """The gradients, those of the matrices summed in float32 over the chunks of the batch.

    Where S is a transposed view, ``S`` holds the gradient of S', so that it is laid out like S.
    """

    x: Tensor
    W: Tensor
    S: Tensor
    transposed: bool
    need_x: bool

    def add(self, rows: slice, x: Tensor, W: Tensor, total: Tensor, du: Tensor, z: Tensor) -> None:
        """A chunk: ``total`` [rows, p] is du summed over the stages; du, z [K - 1, rows, p] go
        together in the gradient of S."""
        self.W.addmm_(total.t(), x[rows].float())
        if self.need_x:
            self.x[rows] = total @ W.float()
        if self.transposed:
            du, z = z, du
        if self.S.dim() == 3:
            self.S.baddbmm_(du.transpose(1, 2), z)
        elif self.S.dim() == 2:
            self.S.addmm_(du.flatten(0, 1).t(), z.flatten(0, 1))


def _gradients(
    x: Tensor, W: Tensor, S: Tensor | None, need_x: bool, keep_layout: bool = False
) -> _Gradients:
    p = W.shape[0]
    empty = torch.empty(0, dtype=torch.float32, device=x.device)
    return _Gradients(
        x.new_empty(x.shape) if need_x else x.new_empty(0),
        torch.zeros_like(W, dtype=torch.float32, memory_format=torch.contiguous_format),
        empty if S is None else empty.new_zeros(S.shape),
        keep_layout and S is not None and S.stride(-2) == 1 and S.stride(-1) == p and p > 1,
        need_x,
    )


def _chunks(batch: int, p: int, tiles: int, multiple: int) -> list[slice]:
    """The batch in slices of which ``tiles`` dense tiles [rows, p] take about CHUNK_BYTES."""
    size = multiple * max(1, CHUNK_BYTES // (4 * max(p, 1) * tiles * multiple))
    return [slice(i, min(i + size, batch)) for i in range(0, batch, size)]


def encode_l0_backward(
    grad_z: Tensor,
    saved: Tensor,
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    theta: Tensor,
    sigma: float,
    kind: str,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Serves ``deepl0::encode_l0_backward``."""
    if by_pytorch(W):
        from . import encode_dense

        return encode_dense.encode_l0_backward(grad_z, saved, x, W, S, theta, sigma, kind, need_x)
    stages, batch, p = saved.shape
    grad_z, saved, theta = grad_z.contiguous(), saved.contiguous(), theta.contiguous()
    out = _gradients(x, W, S, need_x)
    s, (_, s_row, s_step) = matrix_and_strides(x, S)
    c = config("encode_l0_backward", p)
    # Summed over the rows of a tile here, over the tiles and stages in float64 below.
    partial = torch.empty(
        (stages, ceil_div(batch, c.rows), p), dtype=torch.float32, device=x.device
    )
    chunks = _chunks(batch, p, 2 * stages, c.rows)
    buffer = torch.empty(
        (2 * stages, chunks[0].stop if chunks else 0, p), dtype=torch.float32, device=x.device
    )
    for rows in chunks:
        count = rows.stop - rows.start
        # du of the stages, their sum, z of all but the last.
        tiles = buffer.view(-1)[: 2 * stages * count * p].view(2 * stages, count, p)
        du, total, z = tiles[:stages], tiles[stages], tiles[stages + 1 :]
        for k in reversed(range(stages)):
            last = k + 1 == stages
            step = of_stage(s, k) if S is not None and not last else s
            t = of_stage(theta, k, 2)
            launch(
                encode_l0_bwd_kernel, (ceil_div(count, c.rows), ceil_div(p, c.columns)),
                grad_z[rows] if last else du[k + 1], saved[k, rows], step, t,
                du[k], total, None if last else z[k], partial[k, rows.start // c.rows :],
                count, p, sigma, s_row, s_step, t.dim(),
                config=c, KIND=kind, RAMP=sigma > 0, FIRST=last,
                PRECISION=precision(torch.float32, s),
                ROWS=c.rows, COLUMNS=c.columns, DEPTH=c.depth,
            )  # fmt: skip
        out.add(rows, x, W, total, du[1:], z)
    sums = partial.sum(1, dtype=torch.float64)
    grad_theta = (sums, sums.sum(0), sums.sum())[2 - theta.dim()]
    low = x.dtype
    return out.x, out.W.to(low), out.S.to(low), grad_theta.to(theta.dtype)


def encode_top_m_backward(
    grad_values: Tensor,
    indices: Tensor,
    saved_values: Tensor,
    saved_indices: Tensor,
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Serves ``deepl0::encode_top_m_backward``."""
    (batch, m), p = grad_values.shape, W.shape[0]
    stages = saved_values.shape[0] + 1
    if p > FUSED_P:
        from . import encode_large

        return encode_large.encode_top_m_backward(
            grad_values, indices, saved_values, saved_indices, x, W, S, need_x
        )
    codes = [t.contiguous() for t in (grad_values, indices, saved_values, saved_indices)]
    out = _gradients(x, W, S, need_x, keep_layout=True)
    if m == 0 and need_x:
        out.x.zero_()
    s, strides = matrix_and_strides(x, None if S is None else within_32_bits(S))
    mode = precision(torch.float32, s)
    c = whole_rows(mode, p)
    chunks = _chunks(batch, p, 2 * stages - 1, c.rows) if m else []
    for rows in chunks:
        count = rows.stop - rows.start
        tiles = torch.zeros((2 * stages - 1, count, p), dtype=torch.float32, device=x.device)
        du, z = tiles[:stages], tiles[stages:]
        given = (t[rows] if t.dim() == 2 else t[:, rows] for t in codes)
        launch(
            encode_top_m_bwd_kernel, (ceil_div(count, c.rows),), *given, s, du, z,
            count, batch, p, m, stages, *strides,
            config=c, PRECISION=mode,
            ROWS=c.rows, COLUMNS=padded(p), DEPTH=c.depth, ENTRIES=min(64, padded(p)),
        )  # fmt: skip
        out.add(rows, x, W, du[0], du[1:], z)
    low = x.dtype
    grad_s = out.S.to(low)
    return out.x, out.W.to(low), grad_s.mT if out.transposed else grad_s
