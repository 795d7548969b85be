"""The encoders, forward and backward: the plan, which of four ways serves a call.

rows    a launch for all stages, whose programs own whole rows: rows that registers hold
tiles   a launch a stage, tiled over rows and columns, of the l0 encoder
sparse  of the M-sparse encoder over long codes: gathers, and no [B, p] is ever written
dense   products as PyTorch multiplies them, where those are faster

Each way is a file, encode_<way>.py, with the functions of the same names; formulas of the gradients
stand in encode_tiles.py (l0) and encode_sparse.py (M-sparse).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .._matrices import gradient_of_matrix
from . import encode_dense, encode_rows, encode_sparse, encode_tiles, table
from .launch import contiguous
from .product import by_pytorch


def way_of_top_m(p: int, m: int) -> ModuleType:
    """Codes of m of p entries."""
    if p <= table.FUSED_P:
        return encode_rows
    return encode_sparse if encode_sparse.pays(p, m) else encode_dense


def way_of_l0(W: Tensor, backward: bool = False) -> ModuleType:
    if by_pytorch(W):
        return encode_dense
    return encode_tiles if backward or W.shape[0] > table.FUSED_P else encode_rows


def encode_top_m(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, m: int, num_stages: int,
    positive: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_top_m``."""
    batch, before = x.shape[0], num_stages - 1 if save else 0
    code = (
        x.new_empty((batch, m)),
        x.new_empty((batch, m), dtype=torch.int64),
        x.new_empty((before, batch, m), dtype=torch.float32),
        x.new_empty((before, batch, m), dtype=torch.int64),
    )
    if batch * m > 0:
        S = S if num_stages > 1 else None
        way = way_of_top_m(W.shape[0], m)
        way.encode_top_m(x, W, S, contiguous(bias), num_stages, positive, *code)
    return code


def encode_top_m_backward(
    grad_values: Tensor, values: Tensor | None, indices: Tensor, saved_values: Tensor,
    saved_indices: Tensor, x: Tensor, W: Tensor, S: Tensor | None, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_top_m_backward``: gradients in x, W, S and the bias, those in the
    mask. Of nonnegative codes, which come with ``values``, what is 0 is not in the support."""
    p, m = W.shape[0], grad_values.shape[1]
    empty = grad_values.numel() == 0
    used = None if empty or saved_values.shape[0] == 0 else S
    if not empty and mask & (15 if used is not None else 11):
        if values is not None:
            grad_values = grad_values.masked_fill(values == 0, 0.0)
        code = (t.contiguous() for t in (grad_values, indices, saved_values, saved_indices))
        way = way_of_top_m(p, m)
        grad_x, grad_W, grad_S, grad_bias = way.encode_top_m_backward(
            *code, x, W, used, values is not None, mask
        )
    else:
        grad_x = x.new_zeros(x.shape if mask & 1 else 0)
        grad_W = x.new_zeros(W.shape if mask & 2 else 0)
        grad_S = x.new_empty(0)
        grad_bias = x.new_zeros(p if mask & 8 else 0)
    if used is None and S is not None and mask & 4:
        grad_S = gradient_of_matrix(S).zero_()
    return grad_x, grad_W, grad_S, grad_bias


def encode_l0(
    x: Tensor, W: Tensor, S: Tensor | None, bias: Tensor | None, theta: Tensor, num_stages: int,
    sigma: float, kind: str, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0``."""
    shape = (num_stages if save else 0, x.shape[0], W.shape[0])
    saved = x.new_empty(shape, dtype=torch.float32)
    operands = x, W, S if num_stages > 1 else None, contiguous(bias), theta.contiguous()
    return way_of_l0(W).encode_l0(*operands, num_stages, sigma, kind, saved), saved


def encode_l0_backward(
    grad_z: Tensor, saved: Tensor, x: Tensor, W: Tensor, S: Tensor | None, theta: Tensor,
    sigma: float, kind: str, mask: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Serves ``deepl0::encode_l0_backward``: gradients in x, W, S, theta and the bias, those in the
    mask."""
    used = S if saved.shape[0] > 1 else None
    given = (grad_z.contiguous(), saved.contiguous(), x, W, used, theta.contiguous())
    way = way_of_l0(W, backward=True)
    grad_x, grad_W, grad_S, *others = way.encode_l0_backward(*given, sigma, kind, mask)
    if S is not None and used is None and mask & 4:
        grad_S = S.new_zeros(S.shape)
    return grad_x, grad_W, grad_S, *others
