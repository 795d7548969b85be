"""One stage of the unrolled iteration: z' = h(x W' + b + z S')."""

from __future__ import annotations

from torch import Tensor

from .precision import accumulation_dtype
from .thresholds import threshold
from .top_m import keep_top_m


def first_activation(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b in the accumulation dtype."""
    dtype = accumulation_dtype(x.dtype)
    wx = x.to(dtype) @ W.to(dtype).t()
    return wx if bias is None else wx + bias.to(dtype)


def pre_activation(x: Tensor, W: Tensor, z: Tensor, S: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b + z S' in the accumulation dtype."""
    wx = first_activation(x, W, bias)
    return wx + z.to(wx.dtype) @ S.to(wx.dtype).t()


def threshold_stage(
    x: Tensor,
    W: Tensor,
    z: Tensor,
    S: Tensor,
    bias: Tensor | None,
    theta: Tensor,
    sigma: float,
    kind: str,
    save: bool = False,
) -> tuple[Tensor, Tensor]:
    """The threshold of u = x W' + b + z S' and, if ``save``, u itself."""
    u = pre_activation(x, W, z, S, bias)
    out = threshold(u, theta, sigma, kind).to(x.dtype)
    return out, u if save else u.new_empty((0, u.shape[1]))


def top_m_stage(
    x: Tensor,
    W: Tensor,
    z: Tensor,
    S: Tensor,
    bias: Tensor | None,
    m: int,
    positive: bool = False,
) -> tuple[Tensor, Tensor]:
    """keep_top_m(x W' + b + z S') and its packed mask."""
    out, mask = keep_top_m(pre_activation(x, W, z, S, bias), m, positive)
    return out.to(x.dtype), mask
