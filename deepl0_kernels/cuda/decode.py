"""x_hat = D a as a gather-sum of atoms, and its backward by unit lists (csrc/cuda/unit_lists.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import by_columns
from . import library


def decode(values: Tensor, indices: Tensor, D: Tensor) -> Tensor:
    """Serves ``deepl0::decode``: values and indices [B, m], D [n, p] -> [B, n].

    m n elements of D' read a row. D' is D itself where that is a transposed view, else a copy,
    2 n p elements; for few entries a copy of the atoms in use only.
    """
    if 4 * indices.numel() < D.shape[1] and not by_columns(D):
        atoms = D.index_select(1, indices.flatten())
        indices = torch.arange(indices.numel(), device=D.device).view(indices.shape)
    else:
        atoms = D
    return library.kernels.gather_rows(values.float(), indices, library.transposed(atoms), False)


def decode_backward(
    grad: Tensor, values: Tensor, indices: Tensor, D: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    """Serves ``deepl0::decode_backward``: gradients in values and D, empty where not wanted.

    grad_values are dot products with atoms; grad_D is the sum of the rows of grad over the list of
    each atom.
    """
    kernels = library.kernels
    grad_values = values.new_empty(0)
    if mask & 1:
        grad_values = kernels.row_dots(indices, library.transposed(D), grad).to(values.dtype)
    if not mask & 2:
        return grad_values, D.new_empty(0)
    lists = kernels.group(indices, D.shape[1])
    grad_atoms = kernels.combine(*lists, values.float(), grad)
    grad_D = grad_atoms.t()
    return grad_values, grad_D if by_columns(D) else grad_D.contiguous()
