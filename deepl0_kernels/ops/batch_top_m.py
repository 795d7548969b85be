"""Selection over a whole batch: BatchTopK."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import reference
from . import checks, registration


def _fake(u, m, positive):
    rows = math.prod(u.shape[:-1])
    entries = rows * m
    return (
        u.new_empty(entries),
        u.new_empty(entries, dtype=torch.int64),
        u.new_empty(rows + 1, dtype=torch.int64),
    )


def _setup(ctx, inputs, output):
    u, _, positive = inputs
    values, indices, offsets = output
    ctx.shape = u.shape
    ctx.save_for_backward(offsets, indices, values if positive else None)


def _backward(ctx, grad_values, *_):
    offsets, indices, values = ctx.saved_tensors
    if values is not None:
        grad_values = grad_values.masked_fill(values == 0, 0)
    entries = torch.arange(indices.shape[0], device=indices.device)
    rows = torch.searchsorted(offsets[1:], entries, right=True)
    at = rows * ctx.shape[-1] + indices
    grad_u = grad_values.new_zeros(math.prod(ctx.shape)).scatter(0, at, grad_values)
    return grad_u.view(ctx.shape), None, None


def _prepare(u, m, positive):
    checks.floating("u", u)
    m = checks.integer("m", m, 0, u.shape[-1], "p")
    return u, m, checks.boolean("positive", positive)


registration.define(
    "batch_top_m", "(Tensor u, SymInt m, bool positive) -> (Tensor, Tensor, Tensor)", _fake
)
registration.differentiate("batch_top_m", _setup, _backward)
_batch_top_m = registration.serve("batch_top_m", reference.batch_top_m, _prepare)
# A mapped dimension is a batch of batches.
registration.vmap_rows("batch_top_m", rows=())


def batch_top_m(u: Tensor, m: int, *, positive: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """BatchTopK: the B m entries of largest magnitude of a batch of B rows, m a row on average.

    Exactly B m entries; ties go to the lowest row, then to the lowest index; -0.0 equals 0.0; NaN
    counts as largest and inf next. Deterministic.

    Args:
        u: [B, p], float32, float64, float16 or bfloat16, any strides; [p] is one row, and of more
            dimensions all but the last are rows.
        m: 0 <= m <= p.
        positive: the B m largest of ``max(u, 0)`` instead; entries of these that are not > 0 have
            the value +0 and pass no gradient.

    Returns:
        ``(offsets [B + 1], values [B m], indices [B m])``: row b has the entries from
        ``offsets[b]`` to ``offsets[b + 1]``, which are those of u, bit for bit, sign kept, and
        their columns, ascending; offsets and indices are int64. As a matrix of PyTorch:
        ``torch.sparse_csr_tensor(offsets, indices, values, (B, p))``. The gradient goes to the
        selected positions only.

    Raises:
        ValueError: wrong dtype, no last dimension, or m outside [0, p].

    O(B p), one pass over u on a CPU. Source: BatchTopK (Bussmann, Leask, Nanda 2024); tie and NaN
    rules are this package's.

    Example:
        >>> u = torch.tensor([[3.0, -9.0, 1.0], [0.5, 2.0, 0.0]])
        >>> offsets, values, indices = dk.batch_top_m(u, 1)  # one a row on average
        >>> offsets, values, indices
        (tensor([0, 2, 2]), tensor([ 3., -9.]), tensor([0, 1]))
    """
    values, indices, offsets = _batch_top_m(u, m, positive)
    return offsets, values, indices
