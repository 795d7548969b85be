"""The l0-regularized encoder by a launch a stage, tiled over rows and columns: any p.

With g the gradient of z_K, down the stages: du_k = h'(u_k) g, dtheta += sum of g dh/dtheta,
dS += du_k' z_{k-1}, g = du_k S; and with du the
sum over the stages dW = du' x, db = sum of du, dx = du W.

Backward: the derivative, dtheta and z are the epilogue of the product with S. The kernel writes
du_k, z_{k-1} and du of a chunk of the batch densely (dense_sums.py). Flops
2 p (2 (K - 1) p + n (+ n for dx)) a row; bytes moved 4 p (4 K - 1) a row beside the operands.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._matrices import stage_matrix, stage_theta
from .dense_sums import DenseSums, chunks
from .launch import ceil_div, launch
from .product import add_product, matrix_and_strides, precision
from .stage import threshold_tiles
from .table import config
from .thresholds import apply_threshold, function, threshold_derivatives


@triton.jit
def encode_l0_bwd_kernel(
    above_ptr, u_ptr, s_ptr, theta_ptr, du_ptr, total_ptr, z_ptr, partial_ptr,
    rows, p, sigma, s_row, s_step, theta_step,
    KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr, FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One stage: g is grad_z (FIRST: the last stage) or du of the stage above times S; then
    du = g h'(u), added to the sum over the stages, z = h(u), and the sums of g dh/dtheta over the
    rows of the tile; each unless its pointer is None. Without du there is neither sum."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < rows
    real = columns < p
    here = inside[:, None] & real[None, :]
    at = row[:, None] * p + columns[None, :]
    if du_ptr is not None:
        if FIRST:
            g = tl.load(above_ptr + at, mask=here, other=0.0).to(tl.float32)
        else:
            g = add_product(
                tl.zeros((ROWS, COLUMNS), tl.float32), above_ptr, row * p, inside, 1,
                s_ptr, columns * s_step, real, s_row, p, DEPTH, PRECISION,
            )  # fmt: skip
    u = tl.load(u_ptr + at, mask=here, other=0.0)
    theta = tl.load(theta_ptr + columns * theta_step, mask=real, other=1.0)[None, :]
    if du_ptr is not None:
        d_u, d_theta = threshold_derivatives(u, theta, sigma, KIND, POSITIVE, RAMP)
        du = g * d_u
        tl.store(du_ptr + at, du, mask=here)
    if total_ptr is not None:
        if not FIRST:
            total = tl.load(total_ptr + at, mask=here, other=0.0)
            tl.store(total_ptr + at, total + du, mask=here)
        else:
            tl.store(total_ptr + at, du, mask=here)
    if z_ptr is not None:
        z = apply_threshold(u, theta, sigma, KIND, POSITIVE, RAMP)
        tl.store(z_ptr + at, z, mask=here)
    if partial_ptr is not None:
        sums = tl.sum(tl.where(here, g * d_theta, 0.0), axis=0)
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * p + columns, sums, mask=real)


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, theta: Tensor, num_stages: int,
    sigma: float, kind: str, saved: Tensor,
) -> Tensor:  # fmt: skip
    """z of the last stage; the pre-activations into ``saved`` [K, B, p], unless that is empty. The
    first launch leaves x W' + b, which the others start from."""
    z = x.new_empty((x.shape[0], W.shape[0]))
    save = saved.shape[0] > 0
    wx = saved[0] if save else None
    if wx is None and num_stages > 1:
        wx = torch.empty(z.shape, dtype=torch.float32, device=x.device)
    h: dict = dict(sigma=sigma, kind=kind)
    out = z if num_stages == 1 else torch.empty(z.shape, dtype=torch.float32, device=x.device)
    threshold_tiles(out, wx, x=x, W=W, bias=bias, theta=stage_theta(theta, 0), **h)
    for k in range(1, num_stages):
        assert S is not None
        code, out = out, z if k + 1 == num_stages else torch.empty_like(out)
        threshold_tiles(
            out, saved[k] if save else None, wx=wx, z=code, S=stage_matrix(S, k - 1),
            theta=stage_theta(theta, k), **h,
        )  # fmt: skip
    return z


def encode_l0_backward(
    grad_z: Tensor, saved: Tensor, x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor,
    sigma: float, kind: str, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, W, S, theta and the bias, those in the mask."""
    stages, batch, p = saved.shape
    sums, need_theta = DenseSums(x, W, S, mask, mask & 16), mask & 8
    s, (_, s_row, s_step) = matrix_and_strides(x, S)
    c = config("encode_l0_backward", p)
    float32: dict = dict(dtype=torch.float32, device=x.device)
    partial = None
    if need_theta:  # summed over the rows of a tile here, over tiles and stages in float64 below
        partial = torch.empty((stages, ceil_div(batch, c.rows), p), **float32)
    # du of the stages, their sum, z of all but the last.
    size = stages + sums.need_total + (stages - 1 if sums.need_S else 0)
    slices = chunks(batch, p, size, c.rows)
    buffer = torch.empty((size, slices[0].stop if slices else 0, p), **float32)
    for rows in slices:
        count = rows.stop - rows.start
        tiles = buffer.view(-1)[: size * count * p].view(size, count, p)
        du, total = tiles[:stages], tiles[stages] if sums.need_total else None
        z = tiles[stages + sums.need_total :] if sums.need_S else None
        for k in reversed(range(stages)):
            last = k + 1 == stages
            t = stage_theta(theta, k)
            launch(
                encode_l0_bwd_kernel, (ceil_div(count, c.rows), ceil_div(p, c.columns)),
                grad_z[rows] if last else du[k + 1], saved[k, rows],
                s if S is None or last else stage_matrix(s, k), t,
                du[k] if k > 0 or sums.need_total or need_theta else None, total,
                None if z is None or last else z[k],
                None if partial is None else partial[k, rows.start // c.rows :],
                count, p, sigma, s_row, s_step, t.dim(),
                config=c, **function(kind, sigma), FIRST=last,
                PRECISION=precision(torch.float32, s),
                ROWS=c.rows, COLUMNS=c.columns, DEPTH=c.depth,
            )  # fmt: skip
        sums.add(rows, total, du[1:], z)
    grad_theta = theta.new_empty(0)
    if partial is not None:
        each = partial.sum(1, dtype=torch.float64)
        grad_theta = (each, each.sum(0), each.sum())[2 - theta.dim()].to(theta.dtype)
    grad_x, grad_W, grad_S, grad_bias = sums.results()
    return grad_x, grad_W, grad_S, grad_theta, grad_bias
