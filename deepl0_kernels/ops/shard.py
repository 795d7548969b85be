"""One stage over the units of one shard of a dictionary: the m largest of x W' + bias + z there.

What the kernel forms of a unit is one sum of fixed order, whatever the other units are: a shard
gives the bits that the whole dictionary would (docs/screening.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..backends import implementation
from ..reference.shard import shard_activation
from . import registration

# Rows of u that are held at a time where it is formed: bytes.
_PANEL = 1 << 28

registration.define(
    "shard_top_m",
    "(Tensor x, Tensor W, Tensor? bias, Tensor z_values, Tensor z_indices, SymInt m,"
    " bool positive) -> (Tensor, Tensor)",
    lambda x, W, bias, z_values, z_indices, m, positive: (
        x.new_empty((x.shape[0], m)),
        x.new_empty((x.shape[0], m), dtype=torch.int64),
    ),
)
registration.differentiate("shard_top_m")
_native = registration.serve("shard_top_m", reference.shard_top_m, low=None)


def shard_top_m(
    x: Tensor,
    W: Tensor,
    bias: Tensor | None,
    z_values: Tensor,
    z_indices: Tensor,
    m: int,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    """Values and indices [B, m] of the m largest entries of ``x W' + bias + z``; no gradient.

    x [B, n], W [p, n], float32 or float64; z [B, w] of different, ascending indices. float32 on a
    CPU is screened; else u is formed, some rows at a time.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _native(x, W, bias, z_values, z_indices, m, positive)
    top_m = implementation("top_m", x)
    rows = max(_PANEL // max(W.shape[0] * x.element_size(), 1), 1)
    parts = [
        top_m(shard_activation(x[at], W, bias, z_values[at], z_indices[at]), m, positive)
        for at in (slice(i, i + rows) for i in range(0, max(len(x), 1), rows))
    ]
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)
