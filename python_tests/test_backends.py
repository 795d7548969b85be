"""Choice, override and report of backends."""

from __future__ import annotations

import importlib

import pytest
import torch

import deepl0_kernels as dk


def test_default_and_report():
    u = torch.randn(2, 5)
    dk.top_m(u, 2)
    call = dk.last_call()
    assert (call.operator, call.backend, call.isa) == (
        "top_m",
        "cpu",
        dk.build_info()["isa_active"],
    )
    assert call.reason == "default for the device"
    served = dk.backends()["top_m"]
    assert served == {"cpu": "cpu", "other": "reference"} | (
        {"cuda": served["cuda"]} if "cuda" in served else {}
    )
    names = {
        "threshold",
        "top_m",
        "keep_top_m",
        "unpool",
        "apply_mask",
        "threshold_stage",
        "top_m_stage",
    }
    assert set(dk.backends()) == names | {
        "encode_l0",
        "encode_top_m",
        "decode",
        "iht_l0",
        "iht_top_m",
        "omp",
    }


def test_override_as_context_and_as_function():
    u = torch.randn(2, 5)
    with dk.use_backend("reference"):
        dk.helu(u, 0.5)
        assert dk.last_call() == ("threshold", "reference", None, "forced by use_backend")
        with dk.use_backend("cpu"):
            dk.helu(u, 0.5)
            assert dk.last_call().backend == "cpu"
        dk.helu(u, 0.5)
        assert dk.last_call().backend == "reference"
    dk.helu(u, 0.5)
    assert dk.last_call().backend == "cpu"
    dk.use_backend("reference")
    assert set(dk.backends()["top_m"].values()) == {"reference"}
    dk.use_backend(None)
    assert dk.backends()["top_m"]["cpu"] == "cpu"


def test_the_override_ends_with_an_exception():
    with pytest.raises(KeyError), dk.use_backend("reference"):
        raise KeyError
    dk.helu(torch.randn(3), 0.5)
    assert dk.last_call().backend == "cpu"


def test_other_devices_get_the_reference_and_cpu_does_not_serve_them():
    u = torch.randn(2, 5, device="meta")
    assert dk.top_m(u, 2)[0].shape == (2, 2)
    assert dk.last_call().backend == "reference"
    with (
        dk.use_backend("cpu"),
        pytest.raises(ValueError, match="backend 'cpu' does not serve 'meta' tensors"),
    ):
        dk.top_m(u, 2)


@pytest.mark.parametrize("name", ["gpu", "", 3])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="name must be one of"):
        dk.use_backend(name)


@pytest.mark.parametrize(
    ("name", "why"), [("triton", "triton is not installed"), ("cuda", "built without nvcc")]
)
def test_backends_that_are_not_in_the_build(monkeypatch, name, why):
    module = importlib.import_module("deepl0_kernels.backends")
    monkeypatch.setattr(module, "_NATIVE", {"cpu": ("cpu",)})
    with pytest.raises(ValueError, match=f"backend '{name}' is not in this build: {why}; it has"):
        dk.use_backend(name)


def test_compiled_graphs_follow_the_override():
    torch._dynamo.reset()
    compiled = torch.compile(lambda u: dk.keep_top_m(u, 2), fullgraph=True, backend="eager")
    u = torch.randn(3, 6)
    want = compiled(u)
    with dk.use_backend("reference"):
        assert torch.equal(compiled(u), want)
