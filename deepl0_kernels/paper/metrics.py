"""Errors of predicted codes against optimal ones."""

from __future__ import annotations

from torch import Tensor


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
