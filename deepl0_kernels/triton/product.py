"""Matrix products, by PyTorch: encoders that had them inside their kernels took 1.3 to 9.6 times as
long on an H200 as its library with a kernel for the stage behind it."""

from __future__ import annotations

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b in float32, [rows, n] by [n, columns], of float32 or half types: two of the same half
    type are multiplied as they are, with sums in float32, else as float32."""
    if a.dtype == b.dtype != torch.float32 and a.device.type != "cpu":  # which has no such product
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a b to ``total``, of float32."""
    if a.dtype == b.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += product(a, b)


def first_product(
    x: Tensor, W: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """x W' + b in float32; or without b, and b, which then is still to be added: PyTorch has no
    product of half types with a bias and a float32 result."""
    if bias is None or x.dtype != torch.float32:
        return product(x, W.t(), out), None if bias is None else bias.contiguous()
    return torch.addmm(bias.float(), x, W.float().t(), out=out), None
