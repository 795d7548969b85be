"""Trainings of SAELens's classes and of ours over the same activations, in its own trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import (
    AbsTopKSAE,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    SAETrainer,
    TopKSAE,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from torch import Tensor

from deepl0_kernels.sae import saelens

PAIRS = {
    "topk": (
        (TopKTrainingSAE, TopKTrainingSAEConfig),
        (saelens.DeepL0TopKTrainingSAE, saelens.DeepL0TopKTrainingSAEConfig),
    ),
    "abstopk": (
        (AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig),
        (saelens.DeepL0AbsTopKTrainingSAE, saelens.DeepL0AbsTopKTrainingSAEConfig),
    ),
}
INFERENCE = {
    "topk": (TopKSAE, saelens.DeepL0TopKSAE),
    "abstopk": (AbsTopKSAE, saelens.DeepL0AbsTopKSAE),
}


@dataclass(frozen=True)
class Settings:
    """Of one training. Units count as dead after so many steps that the auxiliary loss, from few
    and from many of them, is part of most of it."""

    d_sae: int
    k: int = 32
    d_in: int = 384
    batch: int = 64
    steps: int = 200
    lr: float = 1e-3
    dead_feature_window: int = 20
    dtype: str = "float64"
    seed: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def source() -> str:
    path = Path(os.environ.get("DEEPL0_DATA", ".")) / "minilm_activations.npz"
    return path.name if path.exists() else "random sums of atoms"


def activations(s: Settings) -> Iterator[Tensor]:
    """Batches without end, the same for the same settings; real ones where the data are there."""
    generator = torch.Generator().manual_seed(s.seed)
    dtype = getattr(torch, s.dtype)
    if s.d_in == 384 and source().endswith(".npz"):
        with np.load(Path(os.environ["DEEPL0_DATA"]) / source()) as file:
            rows = torch.from_numpy(file["train"][:20_000].astype("float64"))
        while True:
            yield rows[torch.randint(len(rows), (s.batch,), generator=generator)].to(dtype)
    atoms = torch.randn(4 * s.d_in, s.d_in, generator=generator, dtype=torch.float64)
    while True:
        amounts = torch.rand(s.batch, len(atoms), generator=generator, dtype=torch.float64)
        yield (torch.where(amounts > 0.98, amounts, 0.0) @ atoms + 0.1).to(dtype)


def sae_of(kind: str, ours: bool, s: Settings, **options: Any) -> Any:
    cls, config = PAIRS[kind][ours]
    torch.manual_seed(s.seed)
    return cls(config(d_in=s.d_in, d_sae=s.d_sae, k=s.k, dtype=s.dtype, **options))


def trainer_of(sae: Any, s: Settings) -> SAETrainer:
    config = SAETrainerConfig(
        total_training_samples=s.steps * s.batch,
        train_batch_size_samples=s.batch,
        lr=s.lr,
        lr_end=s.lr,
        dead_feature_window=s.dead_feature_window,
    )
    return SAETrainer(config, sae, activations(s))


def step(trainer: SAETrainer, batch: Tensor) -> Any:
    """One of the trainer's ``fit``."""
    output = trainer.step(batch)
    trainer.n_training_steps += 1
    return output


def support(output: Any) -> Tensor:
    """[B, p] of a step: which units fire."""
    return output.feature_acts.detach().to_dense() != 0


def difference(ours: Any, theirs: Any) -> float:
    """Of the losses of two steps, the largest one, over the total loss."""
    assert ours.losses.keys() == theirs.losses.keys()
    total = theirs.loss.item()
    pairs = [(ours.loss, theirs.loss), *((ours.losses[k], v) for k, v in theirs.losses.items())]
    return max(abs(a.item() - b.item()) for a, b in pairs) / total
