"""The whole encoder without S: z_{k+1} = h(z_k + step W (x - D z_k) + b), z_0 = 0 (eq. 10)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._matrices import stage_theta
from .precision import accumulation_dtype
from .thresholds import threshold
from .top_m import top_m, unpool


def factored_activation(
    x: Tensor, W: Tensor, D: Tensor, bias: Tensor | None, step: Tensor | None, z: Tensor | None
) -> Tensor:
    """step W (x - D z) + b + z in the accumulation dtype; step []; z [B, p], None: 0."""
    dtype = accumulation_dtype(x.dtype)
    x, z = x.to(dtype), None if z is None else z.to(dtype)
    r = x if z is None else x - z @ D.to(dtype).t()
    u = (r if step is None else r * step) @ W.to(dtype).t()
    if bias is not None:
        u = u + bias.to(dtype)
    return u if z is None else u + z


def encode_top_m_factored(
    x: Tensor,
    W: Tensor,
    D: Tensor,
    bias: Tensor | None,
    step: Tensor | None,
    m: Sequence[int],
    positive: bool,
    save: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values and indices [B, m[-1]] of z_K and, if ``save``, of the stages before, each [B, m[k]]
    and flattened, one after the other."""
    z, codes = None, []
    for k, entries in enumerate(m):
        u = factored_activation(x, W, D, bias, None if step is None else step[k], z)
        values, indices = top_m(u, entries, positive)
        codes.append((values.to(x.dtype), indices))
        z = unpool(*codes[-1], W.shape[0])
    values, indices = codes.pop()
    if not save:
        codes = []
    saved_values, saved_indices = (
        torch.cat([t.new_empty(0), *(code[i].flatten() for code in codes)])
        for i, t in enumerate((values, indices))
    )
    return values, indices, saved_values.to(u.dtype), saved_indices


def encode_l0_factored(
    x: Tensor,
    W: Tensor,
    D: Tensor,
    bias: Tensor | None,
    step: Tensor | None,
    theta: Tensor,
    num_stages: int,
    sigma: float,
    kind: str,
    save: bool = False,
) -> tuple[Tensor, Tensor]:
    """Dense code z_K [B, p] and, if ``save``, the pre-activations of every stage [K, B, p]."""
    z, saved = None, []
    for k in range(num_stages):
        u = factored_activation(x, W, D, bias, None if step is None else step[k], z)
        z = threshold(u, stage_theta(theta, k), sigma, kind).to(x.dtype)
        saved.append(u)
    assert z is not None
    return z, torch.stack(saved) if save else z.new_empty((0, *z.shape))
