"""x_hat = D a for a sparse code: a gather-sum of atoms."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .._matrices import gradient_of_matrix
from . import checks, placements, registration, sharded
from .sparse_code import SparseCode

registration.define(
    "decode",
    "(Tensor values, Tensor indices, Tensor D) -> Tensor",
    lambda values, indices, D: values.new_empty((values.shape[0], D.shape[0])),
)
registration.define(
    "decode_backward",
    "(Tensor grad, Tensor values, Tensor indices, Tensor D, int mask) -> (Tensor, Tensor)",
    lambda grad, values, indices, D, mask: (
        registration.gradient(values, mask & 1),
        gradient_of_matrix(D) if mask & 2 else D.new_empty(0),
    ),
)
_decode_backward = registration.native("decode_backward")


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    mask = registration.mask(ctx, 0, 2)
    grads = registration.wanted(mask, *_decode_backward(grad, *ctx.saved_tensors, mask))
    return grads[0], None, grads[1]


def _prepare(values, indices, D):
    checks.floating("code.values", values)
    checks.indices("code.indices", indices, "code.values", values)
    checks.like("D", D, "code.values", values)
    return checks.rows(values), checks.rows(indices), D


registration.differentiate("decode", _setup, _backward)
registration.refuse_double_backward("decode_backward", "decode")
_decode = registration.serve("decode", reference.decode, _prepare, low=(0, 2), dims=2)
registration.vmap_rows("decode", rows=(0, 1), batch_dims=(0,))


def decode(code: SparseCode, D: Tensor) -> Tensor:
    """Signals ``x_hat = D a`` of sparse codes a.

    Args:
        code: values and indices [..., m] of size p; a row's indices are distinct.
        D: dictionary [n, p], columns are atoms; dtype and device of the values. A DTensor may be
            sharded over its atoms, Shard(1), see :func:`encode_top_m`.

    Returns:
        [..., n], differentiable in ``code.values`` and D. Deterministic.

    Raises:
        TypeError: code is not a :class:`SparseCode`.
        ValueError: wrong shape, dtype or device, or ``code.size`` is not p.
        RuntimeError: an index is out of range. On a GPU the CUDA kernels stop, which the next
            synchronisation reports as a CUDA error; the Triton kernels make the row NaN.

    2 B m n flops, m rows of n read per sample. The gradient in D is grouped by atom. Source: the
    synthesis ``x = D a`` of Wang, Ling, Huang 2016, eq. 1.

    Example:
        >>> D = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])  # two pixels, three atoms
        >>> dk.decode(dk.SparseCode(torch.tensor([[0.5]]), torch.tensor([[2]]), 3), D)
        tensor([[1., 1.]])
    """
    if placements.is_dtensor(D, getattr(code, "values", None)):
        return sharded.decode(code, D)
    if not isinstance(code, SparseCode):
        raise TypeError(f"code must be a SparseCode, got {type(code).__name__}")
    values = code.values
    if not (isinstance(D, Tensor) and D.dim() == 2 and D.shape[1] == code.size):
        checks.floating("D", D)
        raise ValueError(f"D must have shape [n, p] with p = {code.size}, got {checks.shape(D)}")
    out = _decode(values, code.indices, D)
    return out if values.dim() == 2 else out.reshape(*values.shape[:-1], D.shape[0])
