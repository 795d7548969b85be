"""Encoders with soft thresholds inside, as the protocols start them."""

from __future__ import annotations

import pytest
import torch

from deepl0_kernels import training
from deepl0_kernels.nn import DeepL0Encoder, DeepMSparseEncoder
from deepl0_kernels.paper import deep
from deepl0_kernels.paper.classification.protocol import PROTOCOLS
from deepl0_kernels.paper.classification.systems import _thresholds
from deepl0_kernels.paper.codes.protocol import Protocol

D = torch.nn.functional.normalize(
    torch.randn(16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=0
)
MU = 0.99 / torch.linalg.matrix_norm(D, 2).square()
PROBLEMS = {
    "l0": training.L0Regularized(lam=0.1),
    "m_sparse": training.MSparse(m=4, l1_lam=0.3, positive=True),
}


def soft(level: float) -> torch.Tensor:
    return torch.full((24,), level, dtype=D.dtype) * MU


@pytest.mark.parametrize("key", PROBLEMS)
def test_codes(key):
    problem = PROBLEMS[key]
    encoder = Protocol(inside="soft", num_stages=3).encoder(problem, D)
    assert (encoder.inside, encoder.tied) == ("soft", False)
    assert encoder.positive == problem.positive
    assert encoder.S.shape == (2, 24, 24)
    for theta in encoder.theta[:2]:
        torch.testing.assert_close(theta.detach(), soft(problem.l1_penalty))
    if key == "l0":
        torch.testing.assert_close(encoder.theta[2].detach(), (2 * soft(0.1)).sqrt())
    else:
        assert (encoder.m, len(encoder.theta)) == (4, 2)


@pytest.mark.parametrize(
    ("method", "cls", "level"),
    [(deep.DEEP_L0, DeepL0Encoder, 0.4), (deep.DEEP_M.format(20), DeepMSparseEncoder, 0.7)],
)
def test_classification(method, cls, level):
    protocol = PROTOCOLS["table5"].changed(["inside=soft", "l0_lam=0.4", "lam=0.7"])
    encoder = deep.encoder(method, protocol, D, protocol.inside)
    assert isinstance(encoder, cls)
    assert (encoder.inside, encoder.tied) == ("soft", False)
    torch.testing.assert_close(encoder.theta[0].detach(), soft(level))
    last = _thresholds(encoder)
    if cls is DeepL0Encoder:
        assert encoder.grad == protocol.l0_grad
        torch.testing.assert_close(last, (2 * soft(0.4)).sqrt())
    else:
        assert last is None
    hard = deep.encoder(method, protocol, D)
    assert (hard.inside, hard.tied) == ("hard", True)
    assert last is None or _thresholds(hard).shape == (24,)


def test_hard_thresholds_inside_are_the_default():
    encoder = Protocol().encoder(PROBLEMS["l0"], D)
    assert (encoder.inside, encoder.tied) == ("hard", True)
    with pytest.raises(ValueError, match=r"inside must be one of .*'firm'"):
        Protocol().changed(["inside=firm"])
