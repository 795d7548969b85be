"""Training of an encoder to predict codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._optional import progress_bar
from ..nn import DeepL0Encoder, SigmaSchedule


def fit_to_codes(
    encoder: nn.Module,
    x: Tensor,
    a: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    clip: float,
    seed: int,
    sigma_factor: float = 0.1,
    sigma_floor: float = 0.05,
    progress: bool = False,
    description: str = "training",
) -> list[float]:
    """Regress codes a [N, p] from signals x [N, n]: squared error, Adam with a one-cycle rate.

    The gradient's norm is clipped: entries on HELU's ramp multiply it by 1 / sigma. Returns the
    mean training loss of each epoch; leaves the encoder in evaluation mode.

    Raises:
        RuntimeError: the loss is not finite any more.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = len(x) // batch_size
    optimizer = torch.optim.Adam(encoder.parameters(), lr=lr, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=batches * epochs, pct_start=0.1
    )
    sigma = None
    if isinstance(encoder, DeepL0Encoder):
        sigma = SigmaSchedule(encoder, factor=sigma_factor, floor=sigma_floor)
    losses = []
    encoder.train()
    steps = ((epoch, i) for epoch in range(epochs) for i in range(batches))
    order, total = torch.empty(0), 0.0
    for epoch, i in progress_bar(steps, description, show=progress, total=epochs * batches):
        if i == 0:
            order, total = torch.randperm(len(x), generator=generator), 0.0
            if sigma is not None and epoch > 0:
                sigma.step()
        rows = order[i * batch_size : (i + 1) * batch_size]
        loss = (encoder(x[rows]) - a[rows]).square().sum() / batch_size
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), clip)
        optimizer.step()
        rate.step()
        total += loss.item()
        if i == batches - 1:
            losses.append(total / batches)
            if not math.isfinite(total):
                raise RuntimeError(f"training diverged: loss {total} in epoch {epoch + 1}")
    encoder.eval()
    return losses
