"""Thresholds: hard, soft and HELU_sigma (eq. 9), forward and backward.

A program owns a tile [ROWS, COLUMNS]; theta is read once per tile. Forward: 2 N p elements moved
(one read, one write), about 6 flops each; of a stage also the terms of its sum. Backward: 3 N p
elements; d theta is summed over the rows of a chunk in float32, and over the chunks in float64,
always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.thresholds import ONE_SIDED
from .launch import ceil_div, launch
from .select import positive_part
from .table import config

# Programs that share the rows in the backward: enough for every GPU, few enough to sum cheaply.
_CHUNKS = 512


def function(kind: str, sigma: float) -> dict[str, Any]:
    """The threshold as the kernels' constants tell it."""
    two_sided = kind.removeprefix(ONE_SIDED)
    return {"KIND": two_sided, "POSITIVE": kind != two_sided, "RAMP": sigma > 0}


@triton.jit
def apply_threshold(
    u, theta, sigma, KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr
):
    """``reference.threshold`` of float32 u and theta; RAMP says whether sigma > 0."""
    if POSITIVE:
        u = positive_part(u)
    a = tl.abs(u)
    sign = tl.where(u > 0, 1.0, -1.0)
    if KIND == "soft":
        out = tl.where(a <= theta, 0.0, u - sign * theta)
    elif KIND == "helu" and RAMP:
        lo = (1.0 - sigma) * theta
        out = tl.where(a < theta, (u - sign * lo) / sigma, u)
        out = tl.where(a <= lo, 0.0, out)
    else:
        out = tl.where(a < theta, 0.0, u)
    return tl.where(theta != theta, theta, out)


@triton.jit
def threshold_derivatives(
    u, theta, sigma, KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr
):
    """``reference.coefficients``: d/du and d/dtheta, elementwise."""
    if POSITIVE:
        u = positive_part(u)
    a = tl.abs(u)
    minus_sign = tl.where(u > 0, -1.0, 1.0)
    if KIND == "soft":
        d_u = tl.where(a > theta, 1.0, 0.0)
        d_theta = tl.where(a > theta, minus_sign, 0.0)
    else:
        d_u = tl.where(a >= theta, 1.0, 0.0)
        d_theta = tl.zeros_like(a)
        if KIND != "hard" and RAMP:
            ramp = (a > (1.0 - sigma) * theta) & (a < theta)
            d_theta = tl.where(ramp, minus_sign * ((1.0 - sigma) / sigma), 0.0)
            if KIND != "ste_theta":
                d_u = tl.where(ramp, 1.0 / sigma, d_u)
    if POSITIVE:  # at theta = 0, where d_u above is 1
        d_u = tl.where(u > 0, d_u, 0.0)
    return d_u, d_theta


@triton.jit
def threshold_fwd_kernel(
    u_ptr, more_ptr, bias_ptr, theta_ptr, keep_ptr, out_ptr, n, p, theta_stride, sigma,
    KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = h(u + more + bias), and the sum itself to keep, which may be u; more, bias and keep may
    be None."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < n) & (columns[None, :] < p)
    at = rows[:, None] * p + columns[None, :]
    u = tl.load(u_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if more_ptr is not None:
        u += tl.load(more_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        u += tl.load(bias_ptr + columns, mask=columns < p, other=0.0).to(tl.float32)[None, :]
    if keep_ptr is not None:
        tl.store(keep_ptr + at, u, mask=inside)
    theta = tl.load(theta_ptr + columns * theta_stride, mask=columns < p, other=1.0).to(tl.float32)
    out = apply_threshold(u, theta[None, :], sigma, KIND, POSITIVE, RAMP)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def threshold_bwd_kernel(
    grad_ptr, u_ptr, theta_ptr, grad_u_ptr, total_ptr, partial_ptr, n, p, theta_stride, sigma,
    chunk,
    KIND: tl.constexpr, POSITIVE: tl.constexpr, RAMP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * chunk
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    theta = tl.load(theta_ptr + columns * theta_stride, mask=columns < p, other=1.0).to(tl.float32)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, chunk, ROWS):
        rows = first + start + tl.arange(0, ROWS)
        inside = (rows[:, None] < n) & (columns[None, :] < p)
        at = rows[:, None] * p + columns[None, :]
        u = tl.load(u_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        d_u, d_theta = threshold_derivatives(u, theta[None, :], sigma, KIND, POSITIVE, RAMP)
        du = grad * d_u
        if grad_u_ptr is not None:
            tl.store(grad_u_ptr + at, du.to(grad_u_ptr.dtype.element_ty), mask=inside)
        if total_ptr is not None:
            total = tl.load(total_ptr + at, mask=inside, other=0.0)
            tl.store(total_ptr + at, total + du, mask=inside)
        sums += tl.sum(grad * d_theta, axis=0)
    if partial_ptr is not None:
        out = partial_ptr + tl.program_id(0).to(tl.int64) * p + columns
        tl.store(out, sums, mask=columns < p)


def threshold(u: Tensor, theta: Tensor, sigma: float, kind: str) -> Tensor:
    """Serves ``deepl0::threshold``: u [..., p], theta [] or [p]."""
    return stage(u.contiguous(), theta, sigma, kind, u.dtype)


def stage(
    u: Tensor, theta: Tensor, sigma: float, kind: str, dtype: torch.dtype, *,
    more: Tensor | None = None, bias: Tensor | None = None, keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The threshold of u + more + bias, rounded to ``dtype``, and the sum itself in ``keep``, which
    may be u. u, more and keep [..., p] and bias [p] are contiguous; what is None is left out."""
    theta, (n, p) = theta.contiguous(), _rows(u)
    out = torch.empty_like(u, dtype=dtype)
    c = config("threshold", p)
    launch(
        threshold_fwd_kernel, (ceil_div(n, c.rows), ceil_div(p, c.columns)),
        u, more, bias, theta, keep, out, n, p, theta.dim(), sigma,
        config=c, **function(kind, sigma), ROWS=c.rows, COLUMNS=c.columns,
    )  # fmt: skip
    return out


def threshold_backward(
    grad_out: Tensor, u: Tensor, theta: Tensor, sigma: float, kind: str, mask: int,
    total: Tensor | None = None, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::threshold_backward``: gradients in u and theta, those in the mask. That in u
    comes in ``dtype``, if given, and is added to ``total``, if given: contiguous float32 in the
    shape of u."""
    need_u, need_theta = mask & 1, mask & 2
    grad_out, u, theta = grad_out.contiguous(), u.contiguous(), theta.contiguous()
    n, p = _rows(u)
    grad_u = u.new_empty(u.shape if need_u else 0, dtype=dtype)
    c = config("threshold_backward", p)
    chunk = c.rows * max(1, ceil_div(n, c.rows * _CHUNKS))
    chunks = ceil_div(n, chunk)
    partial = None
    if need_theta:
        partial = torch.empty(chunks, p, dtype=torch.float32, device=u.device)
    launch(
        threshold_bwd_kernel, (chunks, ceil_div(p, c.columns)),
        grad_out, u, theta, grad_u if need_u else None, total, partial, n, p, theta.dim(), sigma,
        chunk,
        config=c, **function(kind, sigma), ROWS=c.rows, COLUMNS=c.columns,
    )  # fmt: skip
    if partial is None:
        return grad_u, theta.new_empty(0)
    sums = partial.sum(0, dtype=torch.float64)
    return grad_u, (sums if theta.dim() else sums.sum()).to(theta.dtype)


def _rows(u: Tensor) -> tuple[int, int]:
    p = u.shape[-1]
    return (u.numel() // p if p else 0), p
