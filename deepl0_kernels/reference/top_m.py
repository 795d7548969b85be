"""Selection of the M entries of largest magnitude (max_M pooling and unpooling).

Contract: the key is |u|; exactly m entries; ties go to the lowest index; -0.0 equals 0.0; NaN
counts as largest and inf next; values are the inputs, bit for bit; indices ascend. ``positive``
selects from max(u, 0) in the place of u.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .thresholds import positive_part


def top_m(u: Tensor, m: int, positive: bool = False) -> tuple[Tensor, Tensor]:
    """The m entries of largest |u| along the last dimension: values and ascending indices."""
    if positive:
        u = positive_part(u)
    order = u.detach().abs().sort(dim=-1, descending=True, stable=True).indices
    indices = order[..., :m].sort(dim=-1).values
    return u.gather(-1, indices), indices


def unpool(values: Tensor, indices: Tensor, size: int) -> Tensor:
    """Put ``values`` back at ``indices`` of a zero row of length ``size``."""
    return values.new_zeros((*values.shape[:-1], size)).scatter(-1, indices, values)


def keep_top_m(u: Tensor, m: int, positive: bool = False) -> tuple[Tensor, Tensor]:
    """``u`` with all but its m largest magnitudes set to zero, and the packed mask of the entries
    that pass a gradient: the kept; of nonnegative codes those that are not 0."""
    values, indices = top_m(u, m, positive)
    passing = values != 0 if positive else torch.ones_like(values, dtype=torch.bool)
    kept = torch.zeros_like(u, dtype=torch.bool).scatter(-1, indices, passing)
    return unpool(values, indices, u.shape[-1]), pack_mask(kept)


def apply_mask(u: Tensor, mask: Tensor) -> Tensor:
    """``u`` where the packed mask has a bit, else 0."""
    return torch.where(unpack_mask(mask, u.shape[-1]), u, 0.0)


def pack_mask(kept: Tensor) -> Tensor:
    """bool [..., p] -> uint8 [..., ceil(p / 8)]; entry j is bit j % 8 of byte j // 8."""
    p = kept.shape[-1]
    bits = torch.nn.functional.pad(kept.to(torch.uint8), (0, -p % 8))
    bits = bits.unflatten(-1, (-1, 8)) if p else bits.reshape(*kept.shape[:-1], 0, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=kept.device)
    return (bits * weights).sum(-1, dtype=torch.uint8)


def unpack_mask(mask: Tensor, p: int) -> Tensor:
    """Inverse of :func:`pack_mask`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return ((mask.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :p].bool()
