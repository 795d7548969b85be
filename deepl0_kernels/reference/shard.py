"""The m largest entries of x W' + bias + z over some units of a dictionary, z a sparse code."""

from __future__ import annotations

from torch import Tensor

from .top_m import top_m


def shard_activation(
    x: Tensor, W: Tensor, bias: Tensor | None, z_values: Tensor, z_indices: Tensor
) -> Tensor:
    """u = x W' + bias + z [B, p]."""
    u = x @ W.t()
    if bias is not None:
        u = u + bias
    return u.scatter_add(1, z_indices, z_values)


def shard_top_m(
    x: Tensor,
    W: Tensor,
    bias: Tensor | None,
    z_values: Tensor,
    z_indices: Tensor,
    m: int,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    """Values and indices [B, m] of x [B, n] over the units W [p, n]."""
    return top_m(shard_activation(x, W, bias, z_values, z_indices), m, positive)
