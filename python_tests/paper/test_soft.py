"""Encoders with soft thresholds inside: the stages as they are written, and that they train."""

from __future__ import annotations

import math

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels import training
from deepl0_kernels.paper.codes.protocol import Protocol

PROBLEMS = {"l0": training.L0Regularized(lam=0.1), "m_sparse": training.MSparse(m=4)}


def made(key: str, num_stages: int = 3):
    torch.manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(16, 24, dtype=torch.float64), dim=0)
    protocol = Protocol(inside="soft", num_stages=num_stages)
    return protocol.encoder(PROBLEMS[key], D), D, torch.randn(32, 16, dtype=torch.float64)


@pytest.mark.parametrize("key", PROBLEMS)
def test_stages_are_ista_and_then_the_problem(key):
    encoder, D, x = made(key)
    problem, mu = PROBLEMS[key], 0.99 / torch.linalg.matrix_norm(D, 2).square().item()
    z = torch.zeros(32, 24, dtype=torch.float64)
    for stage in range(3):
        u = z + mu * (x - z @ D.T) @ D
        if stage < 2:
            z = u.sign() * (u.abs() - problem.l1_penalty * mu).clamp(min=0)
    if key == "l0":
        z = u * (u.abs() >= math.sqrt(2 * problem.lam * mu))
    else:
        kept = u.abs().topk(4, dim=1).indices
        z = torch.zeros_like(u).scatter(1, kept, u.gather(1, kept))
    with torch.no_grad():
        found = encoder.eval()(x)
    assert torch.equal(found != 0, z != 0)
    torch.testing.assert_close(found, z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", PROBLEMS)
def test_one_stage_is_that_of_the_own_encoder(key):
    encoder, D, x = made(key, num_stages=1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(x), PROBLEMS[key].encoder(D, 1).eval()(x))


@pytest.mark.parametrize("key", PROBLEMS)
def test_training_lowers_the_error(key):
    encoder, D, x = made(key, num_stages=2)
    optimal = PROBLEMS[key].optimal(x, D).dense
    options = dict(epochs=20, batch_size=8, lr=1e-2, clip=1.0, seed=0)
    losses = training.fit_to_codes(encoder, x, optimal, **options)
    assert losses[-1] < 0.7 * losses[0]
    assert encoder.log_theta.grad[0].abs().sum() > 0
    if key == "m_sparse":
        with torch.no_grad():
            assert ((encoder(x) != 0).sum(1) <= 4).all()


def test_hard_thresholds_inside_are_the_default():
    D = torch.nn.functional.normalize(torch.randn(8, 12), dim=0)
    assert isinstance(Protocol().encoder(PROBLEMS["l0"], D), dk.nn.DeepL0Encoder)
    with pytest.raises(ValueError, match=r"inside must be one of .*'firm'"):
        Protocol().changed(["inside=firm"])
