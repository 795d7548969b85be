"""The launchers never wait for the device: CUDA graphs can hold them, and streams overlap."""

from __future__ import annotations

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.backends import GPU

from .problems import PROBLEMS
from .recording import Capturable, recording


@pytest.mark.parametrize("module", PROBLEMS)
def test_launchers_are_capturable(module):
    for problem in PROBLEMS[module]:
        with recording() as jobs:
            problem.call(torch.bfloat16)
        assert jobs, f"{problem.name} launches nothing"


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda t: t.sum().item(), "waits for the device"),
        (lambda t: bool((t > 0).any()), "waits for the device"),
        (lambda t: t.nonzero(), "waits for the device"),
        (lambda t: t[t > 0], "waits for the device"),
        (lambda t: t.cpu(), "runs on or copies"),
        (lambda t: torch.tensor([1.0]).to(t.device), "runs on or copies"),
        (
            lambda t: t.index_add_(0, torch.zeros(3, dtype=torch.int64, device="meta"), t),
            "in no fixed order",
        ),
    ],
    ids=["item", "bool", "nonzero", "mask", "to the host", "from the host", "atomics"],
)
def test_what_a_graph_cannot_hold_is_refused(operation, message):
    with Capturable(), pytest.raises(AssertionError, match=message):
        operation(torch.empty(3, device="meta"))


def test_a_launcher_that_waits_is_found(monkeypatch):
    from deepl0_kernels.triton import thresholds

    sound = thresholds.threshold

    def waits(u, theta, sigma, kind):
        (theta <= 0).nonzero()
        return sound(u, theta, sigma, kind)

    monkeypatch.setattr(thresholds, "threshold", waits)
    with recording(), pytest.raises(AssertionError, match="waits for the device"):
        dk.helu(torch.empty(2, 3, device="meta"), 0.5)


def test_what_is_served_is_differentiated():
    """A forward on the GPU whose backward has no kernel there would fail in training."""
    missing = {
        f"{name}_backward"
        for name in GPU["triton"].operators
        if hasattr(torch.ops.deepl0, f"{name}_backward")
        and f"{name}_backward" not in GPU["triton"].operators
    }
    assert not missing


def test_recording_leaves_no_trace():
    before = dk.backends()
    with recording():
        assert dk.backends() != before
    assert dk.backends() == before
    assert dk.helu(torch.empty(2, 3, device="meta"), 0.5).shape == (2, 3)
    assert dk.last_call().backend == "reference"
    u, theta = torch.empty(2, 3, device="meta"), torch.empty(3, device="meta")
    assert torch.ops.deepl0.threshold(u, theta, 0.0, "hard").shape == (2, 3)
