"""x_hat = D a for a sparse code: a gather-sum of atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import implementation
from . import checks, registration
from .sparse_code import SparseCode

registration.define(
    "decode",
    "(Tensor values, Tensor indices, Tensor D) -> Tensor",
    lambda values, indices, D: values.new_empty((values.shape[0], D.shape[0])),
)
registration.define(
    "decode_backward",
    "(Tensor grad, Tensor values, Tensor indices, Tensor D, int mask) -> (Tensor, Tensor)",
    lambda grad, values, indices, D, mask: registration.fake_gradients(mask, values, (D,)),
)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    mask = registration.wanted(ctx, 0, 2)
    grad_values, grad_D = torch.ops.deepl0.decode_backward(grad, *ctx.saved_tensors, mask)
    return grad_values if mask & 1 else None, None, grad_D if mask & 2 else None


torch.library.register_autograd("deepl0::decode", _backward, setup_context=_setup)
registration.refuse_double_backward("decode_backward", "decode")
registration.serve("decode", reference.decode, low=(0, 2))
registration.vmap_rows("decode", rows=(0, 1), batch_dims=(0,))


def decode(code: SparseCode, D: Tensor) -> Tensor:
    """Signals ``x_hat = D a`` of sparse codes a.

    Args:
        code: values and indices [..., m] of size p; a row's indices are distinct.
        D: dictionary [n, p], columns are atoms; dtype and device of the values.

    Returns:
        [..., n], differentiable in ``code.values`` and D. Deterministic.

    Raises:
        TypeError: code is not a :class:`SparseCode`.
        ValueError: wrong shape, dtype or device, or ``code.size`` is not p.
        RuntimeError: an index is out of range. On a GPU the CUDA kernels stop, which the next
            synchronisation reports as a CUDA error; the Triton kernels make the row NaN.

    2 B m n flops, m rows of n read per sample. The gradient in D is grouped by atom. Source: the
    synthesis ``x = D a`` of Wang, Ling, Huang 2016, eq. 1.
    """
    if not isinstance(code, SparseCode):
        raise TypeError(f"code must be a SparseCode, got {type(code).__name__}")
    values, indices, size = code
    checks.floating("code.values", values)
    checks.indices("code.indices", indices, "code.values", values)
    checks.like("D", D, "code.values", values)
    if D.dim() != 2 or D.shape[1] != size:
        raise ValueError(f"D must have shape [n, p] with p = {size}, got {checks.shape(D)}")
    out = implementation("decode", values)(checks.rows(values), checks.rows(indices), D)
    return out if values.dim() == 2 else out.reshape(*values.shape[:-1], D.shape[0])
