"""The whole encoder: z_1 = h(x W' + b), z_{k+1} = h(x W' + b + z_k S'), k < K."""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import stage_matrix, stage_theta
from .stage import first_activation
from .thresholds import threshold
from .top_m import top_m, unpool


def encode_l0(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    bias: Tensor | None,
    theta: Tensor,
    num_stages: int,
    sigma: float,
    kind: str,
    save: bool = False,
) -> tuple[Tensor, Tensor]:
    """Dense code z_K [B, p] and, if ``save``, the pre-activations of every stage [K, B, p]."""
    wx = first_activation(x, W, bias)
    saved = [wx]
    z = threshold(wx, stage_theta(theta, 0), sigma, kind).to(x.dtype)
    for k in range(1, num_stages):
        assert S is not None
        saved.append(wx + z.to(wx.dtype) @ stage_matrix(S, k - 1).to(wx.dtype).t())
        z = threshold(saved[-1], stage_theta(theta, k), sigma, kind).to(x.dtype)
    return z, torch.stack(saved) if save else wx.new_empty((0, *wx.shape))


def encode_top_m(
    x: Tensor,
    W: Tensor,
    S: Tensor | None,
    bias: Tensor | None,
    m: int,
    num_stages: int,
    positive: bool = False,
    save: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values and indices [B, m] of z_K and, if ``save``, of the stages before, [K - 1, B, m]."""
    u = wx = first_activation(x, W, bias)
    codes: list[tuple[Tensor, Tensor]] = []
    for k in range(num_stages):
        if k > 0:
            assert S is not None
            values, indices = codes[-1]
            z = unpool(values, indices, wx.shape[-1]).to(wx.dtype)
            u = wx + z @ stage_matrix(S, k - 1).to(wx.dtype).t()
        values, indices = top_m(u, m, positive)
        codes.append((values.to(x.dtype), indices))
    values, indices = codes.pop()
    if save and codes:
        saved_values, saved_indices = (torch.stack(s) for s in zip(*codes, strict=True))
    else:
        saved_values, saved_indices = (t.new_empty((0, *t.shape)) for t in (values, indices))
    return values, indices, saved_values.to(wx.dtype), saved_indices
