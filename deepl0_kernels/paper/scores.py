"""Scores: of predicted codes against optimal ones, of a classification, of a clustering."""

from __future__ import annotations

import torch
from torch import Tensor

from .._optional import require


def prediction_error(a: Tensor, predicted: Tensor) -> float:
    """``sum ||a - a_hat||^2 / sum ||a||^2`` in percent, over all samples."""
    a, predicted = a.double(), predicted.double()
    return 100 * ((a - predicted).square().sum() / a.square().sum()).item()


def support_error(a: Tensor, predicted: Tensor) -> float:
    """Mean number of positions where one code is zero and the other is not (Hamming)."""
    return ((a != 0) != (predicted != 0)).sum(-1).double().mean().item()


def reconstruction_error(x: Tensor, D: Tensor, code: Tensor) -> float:
    """``sum ||x - D a||^2 / sum ||x||^2`` in percent, over all samples."""
    x, D, code = x.double(), D.double(), code.double()
    return 100 * ((x - code @ D.T).square().sum() / x.square().sum()).item()


def confusion(y: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """[classes, classes] int64: how often row's class was called column's."""
    return torch.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)


def classification(matrix: Tensor) -> dict[str, float]:
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


def clustering(y: Tensor, assigned: Tensor) -> dict[str, float]:
    """How well clusters [N] int64 fit classes y [N] int64.

    ``error`` in percent under the best matching of clusters to classes (Kuhn 1955, "Hungarian"),
    one to one; ``nmi``, normalised by the arithmetic mean of the entropies, and ``ari``, the
    adjusted Rand index, both at most 1; ``clusters`` that are not empty.

    Raises:
        ModuleNotFoundError: scikit-learn, which brings SciPy, is missing.
    """
    optimize = require("scipy.optimize", "the matching of clusters", extra="sklearn")
    metrics = require("sklearn.metrics", "NMI and ARI", extra="sklearn")
    size = int(max(y.max(), assigned.max())) + 1
    table = confusion(y, assigned, size).numpy()
    rows, columns = optimize.linear_sum_assignment(table, maximize=True)
    return {
        "error": 100 * (1 - float(table[rows, columns].sum()) / len(y)),
        "nmi": float(metrics.normalized_mutual_info_score(y.numpy(), assigned.numpy())),
        "ari": float(metrics.adjusted_rand_score(y.numpy(), assigned.numpy())),
        "clusters": len(assigned.unique()),
    }
