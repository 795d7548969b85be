"""Scores of a classification, all from its confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion(y: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """[classes, classes] int64: how often row's class was called column's."""
    return torch.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)


def scores(matrix: Tensor) -> dict[str, float]:
    """Error, overall and average accuracy (mean over the classes that occur) in percent; kappa.

    Kappa (Cohen 1960) is the agreement beyond chance, 1 for none wrong, 0 for chance.
    """
    m = matrix.double()
    total, rows = m.sum(), m.sum(1)
    overall = m.trace() / total
    recall = (m.diagonal() / rows)[rows > 0]
    chance = (rows @ m.sum(0)) / total**2
    kappa = (overall - chance) / (1 - chance) if chance < 1 else torch.ones(())
    return {
        "error": 100 * (1 - overall).item(),
        "overall_accuracy": 100 * overall.item(),
        "average_accuracy": 100 * recall.mean().item(),
        "kappa": kappa.item(),
    }
