"""Triton kernels the tests compile; importing this needs triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    total = tl.load(x + i, mask=inside) + tl.load(y + i, mask=inside)
    tl.store(out + i, total, mask=inside)


@triton.jit
def add_without_mask(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def functions(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    a = tl.load(x + i, mask=inside, other=0.0)
    b = tl.load(y + i, mask=inside, other=1.0)
    value = tl.where(tl.abs(a) > b, a * b + 1, tl.exp(-a * a)) + tl.sqrt(b) - tl.log(b + 1)
    value += tl.sin(a) * tl.cos(b) + tl.rsqrt(b + 1) + tl.floor(a) + tl.maximum(a, b)
    tl.store(out + i, value + tl.sigmoid(a) + tl.erf(b), mask=inside)


@triton.jit
def integers(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    inside = i < n
    a = tl.load(x + i, mask=inside, other=1)
    b = tl.load(y + i, mask=inside, other=1)
    value = (a // b) + (a % b) * 3 + (a << 2) + (a >> 3) + (a & b) * 2 + (a | b) - (a ^ b)
    wide = (a.to(tl.int64) * b.to(tl.int64)) // 7
    tl.store(out + i, value.to(tl.int64) + wide, mask=inside)


@triton.jit
def softmax(x, out, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + i, mask=i < columns, other=-float("inf"))
    value = tl.exp(value - tl.max(value, 0))
    tl.store(out + row * stride + i, value / tl.sum(value, 0), mask=i < columns)


@triton.jit
def row_sums(x, sums, largest, where, rows, columns, R: tl.constexpr, C: tl.constexpr):
    r = tl.program_id(0) * R + tl.arange(0, R)
    c = tl.arange(0, C)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    value = tl.load(x + r[:, None] * columns + c[None, :], mask=inside, other=-float("inf"))
    tl.store(largest + r, tl.max(value, 1), mask=r < rows)
    tl.store(where + r, tl.argmax(value, 1), mask=r < rows)
    tl.store(sums + r, tl.sum(tl.where(inside, value, 0.0).to(tl.float32), 1), mask=r < rows)


@triton.jit
def cumsum(x, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row * n + i, mask=i < n, other=0)
    tl.store(out + row * n + i, tl.cumsum(value, 0), mask=i < n)


@triton.jit
def _affine(a0, b0, a1, b1):
    return a0 * a1, b0 * a1 + b1


@triton.jit
def recurrence(a, b, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(a + i, mask=i < n, other=1.0)
    y = tl.load(b + i, mask=i < n, other=0.0)
    _, result = tl.associative_scan((x, y), 0, _affine)
    tl.store(out + i, result, mask=i < n)


@triton.jit
def sort_and_count(x, out, bins, BLOCK: tl.constexpr, BINS: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i)
    tl.store(out + i, tl.sort(value))
    group = (value * BINS).to(tl.int32)
    tl.store(bins + tl.arange(0, BINS), tl.histogram(group, BINS))
    tl.atomic_add(bins + BINS + group, 1)


@triton.jit
def gather(x, index, out, N: tl.constexpr, M: tl.constexpr):
    value = tl.load(x + tl.arange(0, N))
    i = tl.load(index + tl.arange(0, M))
    tl.store(out + tl.arange(0, M), tl.gather(value, i, 0))


@triton.jit
def select(x, values, indices, n, M: tl.constexpr, N: tl.constexpr):
    """The M entries of largest magnitude by bisection on the integer image, ties to the lowest."""
    row = tl.program_id(0)
    c = tl.arange(0, N)
    u = tl.load(x + row * n + c, mask=c < n, other=0.0).to(tl.float32)
    key = tl.where(c < n, u.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
    low = tl.zeros((), tl.int32)
    for shift in range(31):
        trial = low | (1 << (30 - shift))
        low = tl.where(tl.sum((key >= trial).to(tl.int32), 0) >= M, trial, low)
    above = (key > low).to(tl.int32)
    equal = (key == low).to(tl.int32)
    take = (above == 1) | ((equal == 1) & (tl.cumsum(equal, 0) <= M - tl.sum(above, 0)))
    place = tl.cumsum(take.to(tl.int32), 0) - 1
    tl.store(values + row * M + place, u, mask=take)
    tl.store(indices + row * M + place, c.to(tl.int64), mask=take)


@triton.jit
def transpose(x, out, rows, columns, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    c = tl.program_id(1) * B + tl.arange(0, B)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    value = tl.load(x + r[:, None] * columns + c[None, :], mask=inside)
    inside = (c[:, None] < columns) & (r[None, :] < rows)
    tl.store(out + c[:, None] * rows + r[None, :], tl.trans(value), mask=inside)


@triton.jit
def matmul(
    a, b, c, M, N, K, stride_a, stride_b, stride_c,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(
            a + m[:, None] * stride_a + k[None, :],
            mask=(m[:, None] < M) & (k[None, :] < K),
            other=0.0,
        )
        y = tl.load(
            b + k[:, None] * stride_b + n[None, :],
            mask=(k[:, None] < K) & (n[None, :] < N),
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(
        c + m[:, None] * stride_c + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N)
    )


@triton.jit
def stages(
    x, W, S, theta, z, B, n, p, BB: tl.constexpr, P: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Two thresholded stages in one kernel: the second product takes its operand from registers."""
    b = tl.program_id(0) * BB + tl.arange(0, BB)
    u = tl.arange(0, P)
    total = tl.zeros((BB, P), tl.float32)
    for start in range(0, n, BK):
        k = start + tl.arange(0, BK)
        xs = tl.load(
            x + b[:, None] * n + k[None, :], mask=(b[:, None] < B) & (k[None, :] < n), other=0.0
        )
        ws = tl.load(
            W + u[:, None] * n + k[None, :], mask=(u[:, None] < p) & (k[None, :] < n), other=0.0
        )
        total = tl.dot(xs, tl.trans(ws), total, input_precision=PRECISION)
    limit = tl.load(theta + u, mask=u < p, other=float("inf"))[None, :]
    code = tl.where(tl.abs(total) >= limit, total, 0.0)
    inside = (u[:, None] < p) & (u[None, :] < p)
    s = tl.load(S + u[:, None] * p + u[None, :], mask=inside, other=0.0)
    again = tl.dot(code.to(s.dtype), tl.trans(s), total, input_precision=PRECISION)
    code = tl.where(tl.abs(again) >= limit, again, 0.0)
    tl.store(z + b[:, None] * p + u[None, :], code, mask=(b[:, None] < B) & (u[None, :] < p))


@triton.jit
def small_dot(a, b, c, B: tl.constexpr, K: tl.constexpr):
    i = tl.arange(0, B)
    k = tl.arange(0, K)
    x = tl.load(a + i[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * B + i[None, :])
    tl.store(c + i[:, None] * B + i[None, :], tl.dot(x, y))


@triton.jit
def dot_of_transposed(
    a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TA: tl.constexpr, TB: tl.constexpr
):
    """c = a b from operands stored either way: all majors and swizzles of shared memory."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    if TA:
        x = tl.trans(tl.load(a + k[:, None] * M + m[None, :]))
    else:
        x = tl.load(a + m[:, None] * K + k[None, :])
    if TB:
        y = tl.trans(tl.load(b + n[:, None] * K + k[None, :]))
    else:
        y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y))
