"""Selection of the M entries of largest magnitude: max_M pooling, unpooling, and both in one."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from . import checks, registration

registration.define(
    "top_m",
    "(Tensor u, SymInt m, bool positive) -> (Tensor, Tensor)",
    lambda u, m, positive: (
        u.new_empty((*u.shape[:-1], m)),
        u.new_empty((*u.shape[:-1], m), dtype=torch.int64),
    ),
)
registration.define(
    "unpool",
    "(Tensor values, Tensor indices, SymInt size) -> Tensor",
    lambda values, indices, size: values.new_empty((*values.shape[:-1], size)),
)
registration.define(
    "keep_top_m",
    "(Tensor u, SymInt m, bool positive) -> (Tensor, Tensor)",
    lambda u, m, positive: (
        u.new_empty(u.shape),
        u.new_empty((*u.shape[:-1], (u.shape[-1] + 7) // 8), dtype=torch.uint8),
    ),
)
registration.define(
    "apply_mask",
    "(Tensor u, Tensor mask) -> Tensor",
    lambda u, mask: u.new_empty(u.shape),
)


_unpool_natively = registration.native("unpool")
apply_mask = registration.native("apply_mask")


def _setup_top_m(ctx, inputs, output):
    u, _, positive = inputs
    ctx.size = u.shape[-1]
    ctx.save_for_backward(output[1], output[0] if positive else None)


def _backward_top_m(ctx, grad_values, _):
    indices, values = ctx.saved_tensors
    if values is not None:
        grad_values = grad_values.masked_fill(values == 0, 0)
    return _unpool_natively(grad_values, indices, ctx.size), None, None


def _setup_unpool(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward_unpool(ctx, grad_out):
    return grad_out.gather(-1, *ctx.saved_tensors), None, None


def _setup_keep_top_m(ctx, inputs, output):
    ctx.save_for_backward(output[1])


def _setup_apply_mask(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _backward_keep_top_m(ctx, grad_out, _):
    return apply_mask(grad_out, *ctx.saved_tensors), None, None


def _backward_apply_mask(ctx, grad_out):
    return apply_mask(grad_out, *ctx.saved_tensors), None


for name, backward, setup in (
    ("top_m", _backward_top_m, _setup_top_m),
    ("unpool", _backward_unpool, _setup_unpool),
    ("keep_top_m", _backward_keep_top_m, _setup_keep_top_m),
    ("apply_mask", _backward_apply_mask, _setup_apply_mask),
):
    registration.differentiate(name, setup, backward)


def _prepare(u, m, positive):
    checks.floating("u", u)
    m = checks.integer("m", m, 0, u.shape[-1], "p")
    return u, m, checks.boolean("positive", positive)


def _prepare_unpool(values, indices, size):
    checks.floating("values", values)
    checks.indices("indices", indices, "values", values)
    return values, indices, checks.integer("size", size, values.shape[-1])


_top_m = registration.serve("top_m", reference.top_m, _prepare)
_unpool = registration.serve("unpool", reference.unpool, _prepare_unpool, low=None)
_keep_top_m = registration.serve("keep_top_m", reference.keep_top_m, _prepare)
registration.serve("apply_mask", reference.apply_mask, low=None)
registration.vmap_rows("top_m", rows=(0,))
registration.vmap_rows("unpool", rows=(0, 1))
registration.vmap_rows("keep_top_m", rows=(0,))
registration.vmap_rows("apply_mask", rows=(0, 1))


def top_m(u: Tensor, m: int, *, positive: bool = False) -> tuple[Tensor, Tensor]:
    """max_M pooling: the m entries of largest magnitude along the last dimension.

    Exactly m entries per row; ties go to the lowest index; -0.0 equals 0.0; NaN counts as largest
    and inf next. Deterministic.

    Args:
        u: [..., p], float32, float64, float16 or bfloat16, any strides.
        m: 0 <= m <= p.
        positive: the m largest of ``max(u, 0)`` instead; entries of these that are not > 0 have
            the value +0 and pass no gradient.

    Returns:
        ``(values [..., m], indices [..., m])``: the entries of u, bit for bit, sign kept, and their
        positions, int64, ascending. The gradient goes to the selected positions only.

    Raises:
        ValueError: wrong dtype, no last dimension, or m outside [0, p].

    O(p) per row, one pass over u while a row fits in L1. Source: Wang, Ling, Huang 2016 (max_M
    pooling); tie and NaN rules are this package's.

    Example:
        >>> values, indices = dk.top_m(torch.tensor([3.0, -5.0, 1.0, 4.0]), 2)
        >>> values, indices
        (tensor([-5.,  4.]), tensor([1, 3]))
    """
    return _top_m(u, m, positive)


def unpool(values: Tensor, indices: Tensor, size: int) -> Tensor:
    """max_M unpooling: put values back at their positions of a zero row.

    Args:
        values: [..., m], floating.
        indices: [..., m], int64, in [0, size), distinct within a row, in any order.
        size: length p of the result's last dimension.

    Returns:
        Dense [..., size] of values' dtype. The gradient is the gather at ``indices``.

    Raises:
        ValueError: shapes differ, indices are not int64, or m > size.
        RuntimeError: an index is out of range, or (cpu backend) occurs twice in a row. On a GPU
            nothing waits for the kernel to find out: an index out of range stops the CUDA kernels,
            which the next synchronisation reports as a CUDA error (as for PyTorch's own indexing),
            and is dropped by the Triton kernels; of several values for one position any one is
            written.

    O(size) per row, written once. Source: Wang, Ling, Huang 2016 (max_M unpooling).

    Example:
        >>> dk.unpool(torch.tensor([-5.0, 4.0]), torch.tensor([1, 3]), size=4)
        tensor([ 0., -5.,  0.,  4.])
    """
    return _unpool(values, indices, size)


def keep_top_m(u: Tensor, m: int, *, positive: bool = False) -> Tensor:
    """``u`` with all but its m entries of largest magnitude set to zero, in one pass.

    Equals ``unpool(*top_m(u, m), p)``, and where ``positive`` the m largest entries behind a ReLU;
    arguments, contract and errors are those of :func:`top_m`.
    Bytes moved: one read and one write of u, and p / 8 of mask for the backward. Source: Wang,
    Ling, Huang 2016, eq. 10 (h_M).

    Example:
        >>> dk.keep_top_m(torch.tensor([3.0, -5.0, 1.0, 4.0]), 2)
        tensor([ 0., -5.,  0.,  4.])
    """
    return _keep_top_m(u, m, positive)[0]
