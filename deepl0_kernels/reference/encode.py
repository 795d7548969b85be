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
    z = threshold(wx, stage_theta(theta, 0), sigma, kind)
    for k in range(1, num_stages):
        assert S is not None
        saved.append(wx + z @ stage_matrix(S, k - 1).to(wx.dtype).t())
        z = threshold(saved[-1], stage_theta(theta, k), sigma, kind)
    return z.to(x.dtype), torch.stack(saved) if save else wx.new_empty((0, *wx.shape))


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
    wx = first_activation(x, W, bias)
    values, indices = top_m(wx, m, positive)
    before = []
    for k in range(1, num_stages):
        assert S is not None
        before.append((values, indices))
        z = unpool(values, indices, wx.shape[-1])
        values, indices = top_m(wx + z @ stage_matrix(S, k - 1).to(wx.dtype).t(), m, positive)
    if save and before:
        saved_values, saved_indices = (torch.stack(s) for s in zip(*before, strict=True))
    else:
        saved_values, saved_indices = (t.new_empty((0, *t.shape)) for t in (values, indices))
    return values.to(x.dtype), indices, saved_values, saved_indices
