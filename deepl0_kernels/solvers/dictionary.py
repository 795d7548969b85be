"""Dictionary learning through a few unrolled iterations of hard thresholding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._optional import progress_bar
from ..ops import checks, decode, encode_l0, encode_top_m
from . import step as steps


@dataclass(frozen=True)
class DictionaryResult:
    """A dictionary and what is known of it.

    Attributes:
        D: [n, p], ||D||_2 <= 1.
        loss: mean training objective of each epoch.
        squared_norm: ||D||_2^2.
        coherence: largest |cosine| between two atoms.
        dead_atoms: atoms that no signal of the last epoch used.
        atom_norms: smallest and largest norm of an atom.
    """

    D: Tensor
    loss: tuple[float, ...]
    squared_norm: float
    coherence: float
    dead_atoms: int
    atom_norms: tuple[float, float]


@torch.inference_mode(False)
@torch.enable_grad()
@steps.without_autocast
def learn_dictionary(
    x: Tensor,
    p: int,
    *,
    m: int | None = None,
    lam: float | None = None,
    num_stages: int = 5,
    epochs: int = 8,
    batch_size: int = 256,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> DictionaryResult:
    """Learn D so that a few hard-thresholding iterations from zero represent x.

    Each step encodes a batch with K stages of IHT (step 1), takes the gradient of the objective
    through all of them, moves D by Adam (one-cycle rate), and scales it back to ``||D||_2 <= 1``.
    Alternating l1 coding with unit-norm updates instead gives ||D||_2^2 of 30 to 160 and codes that
    hard thresholding does not hold still.

    Args:
        x: [N, n] float32 or float64, N >= p and >= batch_size.
        p: atoms.
        m, lam: exactly one: codes with m nonzeros, or the penalty ``lam ||a||_0``.
        num_stages: K.
        epochs, batch_size, lr: of the training.
        seed: of the initialisation (p signals plus noise) and the order of batches; the result is
            deterministic for a given number of threads.
        progress: show a bar (needs tqdm).

    Raises:
        ValueError: x not finite or all 0, both or neither of m and lam, sizes that do not fit.
        ModuleNotFoundError: ``progress`` without tqdm.

    About 6 K p^2 flops a signal and epoch at most, and n p^2 a step. The codes are those of
    Blumensath and Davies 2008, the gradient through their iterations that of Gregor and LeCun 2010.
    """
    checks.floating("x", x, 2)
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64 [N, n], got {x.dtype} {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError("x must be finite, got entries that are nan or inf")
    if not x.any():
        raise ValueError(f"x must not be all 0, got shape {tuple(x.shape)}")
    if (m is None) == (lam is None):
        raise ValueError(f"give exactly one of m and lam, got m={m} and lam={lam}")
    p = checks.integer("p", p, 1, len(x), "N")
    batch_size = checks.integer("batch_size", batch_size, 1, len(x), "N")
    num_stages = checks.integer("num_stages", num_stages, 1)
    epochs = checks.integer("epochs", epochs, 1)
    lr = steps.positive("lr", lr)
    seed = checks.integer("seed", seed, -(2**63), 2**63 - 1, "2**63 - 1")
    if m is not None:
        m = checks.integer("m", m, 1, p, "p")
    if lam is not None:
        lam = steps.positive("lam", lam)

    generator = torch.Generator().manual_seed(seed)
    x = x.detach()
    n = x.shape[1]
    noise = torch.randn(n, p, generator=generator, dtype=x.dtype).to(x.device)
    first = torch.randperm(len(x), generator=generator)[:p]
    D = x[first].T + 0.1 * x.std() * noise
    D = (D / math.sqrt(steps.squared_norm(D))).requires_grad_()
    eye = torch.eye(p, dtype=x.dtype, device=x.device)
    batches = len(x) // batch_size
    optimizer = torch.optim.Adam([D], lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=batches * epochs)
    direction = torch.randn(p, generator=generator, dtype=x.dtype).to(x.device)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        used = torch.zeros(p, dtype=torch.bool, device=x.device)
        total = 0.0
        bar = progress_bar(range(batches), f"dictionary, epoch {epoch + 1}/{epochs}", show=progress)
        for i in bar:
            batch = x[order[i * batch_size : (i + 1) * batch_size]]
            S = eye - D.T @ D
            if m is not None:
                code = encode_top_m(batch, D.T, S, m, num_stages=num_stages)
                used[code.indices.flatten()] = True
                fit = decode(code, D)
                penalty = 0.0
            elif lam is not None:
                a = encode_l0(batch, D.T, S, math.sqrt(2 * lam), num_stages=num_stages)
                active = a.detach() != 0
                used |= active.any(0)
                fit = a @ D.T
                penalty = lam * active.sum().item() / batch_size
            loss = 0.5 * (batch - fit).square().sum() / batch_size
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                # One warm-started power step follows D closely; the end makes the bound exact.
                direction = D.T @ (D @ direction)
                direction /= direction.norm()
                D /= (D @ direction).norm().clamp_min(1)
            total += loss.item() + penalty
        losses.append(total / batches)
    with torch.no_grad():
        D = D.detach()
        norm = math.sqrt(steps.squared_norm(D))
        if norm > 1:
            D, norm = D / norm, 1.0
        norms = D.norm(dim=0)
        unit = D / norms.clamp_min(torch.finfo(D.dtype).tiny)
        cosines = (unit.T @ unit).fill_diagonal_(0).abs()
    return DictionaryResult(
        D,
        tuple(losses),
        norm**2,
        cosines.max().item(),
        int((~used).sum()),
        (norms.min().item(), norms.max().item()),
    )
