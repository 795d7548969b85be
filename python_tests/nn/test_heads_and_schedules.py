"""Baseline, cluster head, sigma schedule."""

from __future__ import annotations

import math

import pytest
import torch

from deepl0_kernels.nn import LISTA, BaselineEncoder, ClusterHead, DeepL0Encoder, SigmaSchedule


def test_baseline():
    encoder = BaselineEncoder(12, 20)
    x = torch.randn(2, 5, 12)
    assert encoder(x).shape == (2, 5, 20)
    assert (encoder(x) >= 0).all()
    assert [layer.p for layer in encoder if isinstance(layer, torch.nn.Dropout)] == pytest.approx(
        [0.1, 0.1, 0.5]
    )
    assert (BaselineEncoder(12, 20, readout=True).eval()(x) < 0).any()
    assert torch.equal(encoder.eval()(x), encoder(x))


def test_the_cluster_head_is_equation_12():
    head = ClusterHead(20, 4)
    a = torch.randn(7, 20)
    e = torch.exp(-(a @ head.weight.T))
    p = e / e.sum(1, keepdim=True)
    torch.testing.assert_close(head(a), p)
    assert torch.equal(head.predict(a), p.argmax(1))
    torch.testing.assert_close(head.entropy(a), -(p * p.log()).sum(1).mean())
    mean = p.mean(0)
    torch.testing.assert_close(
        head.entropy(a, balance=2.0), head.entropy(a) + 2 * (mean * mean.log()).sum()
    )
    assert head(a.reshape(7, 1, 20)).shape == (7, 1, 4)
    assert torch.isfinite(head.entropy(1e4 * a, balance=1.0))
    assert 0 <= head.entropy(a) <= math.log(4)
    with pytest.raises(ValueError, match="clusters must be >= 1, got 0"):
        ClusterHead(20, 0)


def test_the_schedule():
    encoder = DeepL0Encoder(5, 8)
    schedule = SigmaSchedule(encoder, initial=0.2, factor=0.1, floor=0.001)
    seen = [encoder.sigma]
    for _ in range(4):
        schedule.step()
        seen.append(encoder.sigma)
    assert seen == pytest.approx([0.2, 0.02, 0.002, 0.001, 0.001])
    state = schedule.state_dict()
    other = DeepL0Encoder(5, 8)
    resumed = SigmaSchedule(other)
    assert other.sigma == 0.2
    resumed.load_state_dict(state)
    assert other.sigma == encoder.sigma
    resumed.step()
    assert resumed.epoch == 5


@pytest.mark.parametrize(
    "change",
    [dict(initial=0.0), dict(initial=1.5), dict(factor=0.0), dict(floor=0.3), dict(floor=0)],
)
def test_bad_schedules(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be in"):
        SigmaSchedule(DeepL0Encoder(5, 8), **change)


def test_only_the_l0_encoder_has_a_sigma():
    with pytest.raises(TypeError, match="must be a DeepL0Encoder, got LISTA"):
        SigmaSchedule(LISTA(5, 8))
