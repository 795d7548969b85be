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


@pytest.mark.parametrize(
    ("a", "error", "words"),
    [
        (torch.ones(3, 19), ValueError, r"a must have shape .* \[\.\.\., 20\], got \(3, 19\)"),
        (torch.ones(3, 20).double(), ValueError, r"a must have the dtype of the weight .*float64"),
        (torch.ones(3, 20, device="meta"), ValueError, r"a must be on the device of .* got meta"),
        (torch.ones(3, 20).int(), ValueError, r"a must be float32.* got torch.int32"),
        (torch.tensor(1.0), ValueError, r"a must have at least 1 dimension"),
        ([1.0] * 20, TypeError, r"a must be a tensor, got list"),
    ],
)
def test_codes_that_no_head_takes(a, error, words):
    head = ClusterHead(20, 4)
    for call in (head, head.predict, head.entropy):
        with pytest.raises(error, match=words):
            call(a)


@pytest.mark.parametrize("balance", [-1.0, math.nan, math.inf])
def test_bad_balance(balance):
    with pytest.raises(ValueError, match=f"balance must be a finite number >= 0, got {balance}"):
        ClusterHead(20, 4).entropy(torch.ones(3, 20), balance=balance)


def test_the_head_under_autocast_and_in_a_compiled_graph():
    head, a = ClusterHead(20, 4), torch.randn(5, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = head(a).float()
    torch.testing.assert_close(low, head(a), atol=0.02, rtol=0)
    torch._dynamo.reset()
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a), head(a))


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


def test_a_bad_state_changes_nothing():
    encoder = DeepL0Encoder(5, 8)
    schedule = SigmaSchedule(encoder)
    schedule.step()
    good, sigma = schedule.state_dict(), encoder.sigma
    for change in (dict(epoch=-1), dict(initial=math.nan), dict(floor=0.3)):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
            schedule.load_state_dict(good | change)
    with pytest.raises(ValueError, match="state lacks floor, epoch; it has initial, factor"):
        schedule.load_state_dict(dict(initial=0.2, factor=0.1))
    with pytest.raises(TypeError, match="initial must be a number, got 'wide'"):
        SigmaSchedule(encoder, initial="wide")
    assert schedule.state_dict() == good
    assert encoder.sigma == sigma


def test_only_the_l0_encoder_has_a_sigma():
    with pytest.raises(TypeError, match="must be a DeepL0Encoder or a DeepHTPEncoder, got LISTA"):
        SigmaSchedule(LISTA(5, 8))
