"""Stages calibrated one after another: none makes worse what the one before it gave."""

from __future__ import annotations

import itertools

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.solvers import analytic_weights
from deepl0_kernels.training import calibrate
from deepl0_kernels.training.calibrate import least

N, P, K = 32, 256, 12


def coherent(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eight times as many unknowns as measurements: a step of 0.8 diverges."""
    g = torch.Generator().manual_seed(seed)
    D = torch.nn.functional.normalize(torch.randn(N, P, generator=g), dim=0)
    a = torch.randn(200, P, generator=g) * (torch.rand(200, P, generator=g) < 8 / P)
    return D, a @ D.T, a


def encoder(kind: str, D: torch.Tensor) -> dk.nn.DeepL0Encoder | dk.nn.DeepMSparseEncoder:
    if kind == "l0":
        made = dk.nn.DeepL0Encoder(N, P, K, tied=False, factored=True, steps=1.0)
    else:
        made = dk.nn.DeepMSparseEncoder(N, P, [8] * K, K, factored=True, steps=1.0)
    with torch.no_grad():
        made.W.copy_(analytic_weights(D))
        made.atoms.copy_(D.T)
    return made


@pytest.mark.parametrize("kind", ["l0", "m-sparse"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_stage_errs_more_than_the_one_before(kind, seed):
    D, x, a = coherent(seed)
    made = encoder(kind, D)
    errors = calibrate(made, x, a)
    assert errors[0] < 1
    assert all(after <= before for before, after in itertools.pairwise(errors)), errors
    assert made.log_step.exp().min() < 0.75
    with torch.no_grad():
        found = (made(x) - a).square().sum() / a.square().sum()
    assert found.item() == pytest.approx(errors[-1], rel=1e-3)


def test_one_step_is_taken_as_it_is():
    D, x, a = coherent()
    made = encoder("l0", D)
    calibrate(made, x, a, factors=(0.7,))
    torch.testing.assert_close(made.log_step.exp(), torch.full((K,), 0.7))


def test_halves_are_tried_while_they_err_less_or_none_errs_less_than_before():
    tried = []

    def at(step):
        tried.append(step)
        return abs(step - 0.26), 1.0, torch.zeros(())

    for steps, before, best, halves in (
        ((1.2, 1.0), 9.0, 0.25, [0.5, 0.25, 0.125]),
        ((0.1, 1.0), 9.0, 0.1, [0.05]),
        ((0.1, 0.3), 9.0, 0.3, []),
        ((0.1, 0.3), 0.03, 0.3, [0.1 / 2**k for k in range(1, 8)]),
        ((1.0,), 0.0, 1.0, []),
    ):
        tried.clear()
        assert least(at, steps, before)[-1] == best
        assert tried == [*steps, *halves]
