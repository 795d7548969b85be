"""One stage of the unrolled iteration: z' = h(x W' + z S')."""

from __future__ import annotations

from torch import Tensor

from .precision import accumulation_dtype
from .thresholds import threshold
from .top_m import keep_top_m


def pre_activation(x: Tensor, W: Tensor, z: Tensor, S: Tensor) -> Tensor:
    """x W' + z S' in the accumulation dtype."""
    dtype = accumulation_dtype(x.dtype)
    return x.to(dtype) @ W.to(dtype).t() + z.to(dtype) @ S.to(dtype).t()


def threshold_stage(
    x: Tensor, W: Tensor, z: Tensor, S: Tensor, theta: Tensor, sigma: float, save: bool = False
) -> tuple[Tensor, Tensor]:
    """theta * HELU_sigma(u / theta) for u = x W' + z S' and, if ``save``, u itself."""
    u = pre_activation(x, W, z, S)
    out = threshold(u, theta, sigma, "helu").to(x.dtype)
    return out, u if save else u.new_empty((0, u.shape[1]))


def top_m_stage(x: Tensor, W: Tensor, z: Tensor, S: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """keep_top_m(x W' + z S') and the packed mask of the kept."""
    out, mask = keep_top_m(pre_activation(x, W, z, S), m)
    return out.to(x.dtype), mask
