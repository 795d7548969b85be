"""Sums over the batch from dense du and z, by PyTorch's products: deterministic for given shapes.

They are made chunk after chunk of the batch, in order; a chunk holds about 64 MiB of du and z,
whatever the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._matrices import by_columns

# Bytes of du, z and their sum that a chunk of the batch may take.
CHUNK_BYTES = 64 << 20


def chunks(batch: int, p: int, tiles: int, multiple: int) -> list[slice]:
    """The batch in slices of which ``tiles`` dense tiles [rows, p] take about CHUNK_BYTES."""
    size = multiple * max(1, CHUNK_BYTES // (4 * max(p, 1) * tiles * multiple))
    return [slice(i, min(i + size, batch)) for i in range(0, batch, size)]


class DenseSums:
    """The gradients in x, W and S, those in the mask, and in the bias; all but the first summed in
    float32 over the chunks.

    With ``keep_layout`` the gradient of a transposed view S is one, too.
    """

    def __init__(
        self,
        x: Tensor, W: Tensor, S: Tensor | None, mask: int, need_bias: int,
        keep_layout: bool = False,
    ) -> None:  # fmt: skip
        self.operands = x, W
        self.need_x, self.need_W, self.need_bias = mask & 1, mask & 2, need_bias
        self.need_total = bool(mask & 3 or need_bias)
        S = S if mask & 4 else None
        self.need_S = S is not None
        self.transposed = keep_layout and S is not None and by_columns(S)
        float32: dict = dict(dtype=torch.float32, device=x.device)
        self.x = x.new_empty(x.shape if self.need_x else 0)
        self.W = torch.zeros(W.shape if self.need_W else 0, **float32)
        self.bias = torch.zeros(W.shape[0] if need_bias else 0, **float32)
        # If transposed, the gradient of S'.
        self.S = torch.zeros(0 if S is None else S.shape, **float32)

    def add(self, rows: slice, total: Tensor | None, du: Tensor, z: Tensor | None) -> None:
        """A chunk: ``total`` [rows, p] is du summed over the stages, None unless x, W or the bias
        needs it; du, z [K - 1, rows, p] go together in the gradient of S, z None unless S needs
        it."""
        x, W = self.operands
        if total is not None and self.need_W:
            self.W.addmm_(total.t(), x[rows].float())
        if total is not None and self.need_x:
            self.x[rows] = total @ W.float()
        if total is not None and self.need_bias:
            self.bias += total.sum(0)
        if z is None:
            return
        if self.transposed:
            du, z = z, du
        if self.S.dim() == 3:
            self.S.baddbmm_(du.transpose(1, 2), z)
        else:
            self.S.addmm_(du.flatten(0, 1).t(), z.flatten(0, 1))

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the dtype of x."""
        low = self.operands[0].dtype
        grad_S = self.S.to(low)
        grad_S = grad_S.mT if self.transposed else grad_S
        return self.x, self.W.to(low), grad_S, self.bias.to(low)
