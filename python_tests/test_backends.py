"""Choice, override and report of backends."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading

import pytest
import torch

import deepl0_kernels as dk
from deepl0_kernels.backends import GPU


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
    served = dk.backends()
    floors = [name for name, floor in GPU.items() if floor.installed()]
    assert served["threshold"] == {"cpu": "cpu", "other": "reference"} | (
        {"cuda": floors[0]} if floors else {}
    )
    assert served["top_m"].get("cuda", "") == (floors[0] if floors else "")
    assert served["omp"].get("cuda", "reference") == "reference"
    names = {
        "threshold",
        "top_m",
        "keep_top_m",
        "unpool",
        "apply_mask",
        "batch_top_m",
        "threshold_stage",
        "top_m_stage",
    }
    assert set(dk.backends()) == names | {
        "encode_l0",
        "encode_l0_factored",
        "encode_top_m",
        "encode_top_m_factored",
        "decode",
        "fista",
        "iht_l0",
        "iht_top_m",
        "least_squares",
        "omp",
        "refit",
        "shard_top_m",
        "sparse_adam_",
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


def test_a_block_may_be_opened_again():
    block = dk.use_backend("reference")
    for _ in range(2):
        with block:
            assert dk.backends()["top_m"]["cpu"] == "reference"
        assert dk.backends()["top_m"]["cpu"] == "cpu"


def test_blocks_of_threads_may_overlap():
    """The first to begin ends first: what is left is what was there before both."""
    began, ended = [threading.Event(), threading.Event()], threading.Event()
    seen, before = [], dk.backends()

    def first():
        with dk.use_backend("reference"):
            began[0].set()
            assert began[1].wait(10)
        ended.set()

    def second():
        assert began[0].wait(10)
        with dk.use_backend("cpu"):
            began[1].set()
            assert ended.wait(10)
            seen.append(dk.backends()["top_m"]["other"])

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == ["cpu"]
    assert dk.backends() == before


def test_an_override_within_a_compiled_graph():
    torch._dynamo.reset()

    def function(u):
        with dk.use_backend("reference"):
            return dk.keep_top_m(u, 2)

    u = torch.randn(3, 6)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(u), dk.keep_top_m(u, 2))
    assert dk.backends()["top_m"]["cpu"] == "cpu"


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


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_importing_the_package_imports_no_triton():
    assert python(
        "import sys, torch\nbefore = 'triton' in sys.modules\nimport deepl0_kernels as dk\n"
        "dk.top_m(torch.randn(2, 5), 2)\nprint(before or 'triton' not in sys.modules)"
    ).split() == ["True"]


def test_without_triton_everything_else_works():
    out = python(
        "import importlib.util as u, sys, torch\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "sys.modules['triton'] = None\n"
        "import deepl0_kernels as dk\n"
        "print(dk.backends()['threshold'])\n"
        "x = torch.randn(4, 8)\n"
        "code = dk.encode_top_m(x, torch.randn(16, 8), torch.randn(16, 16), 3)\n"
        "print(dk.decode(code, torch.randn(8, 16)).shape[1], dk.last_call().backend)\n"
        "print(dk.helu(torch.empty(2, 3, device='meta'), 0.5).shape[1], dk.last_call().backend)\n"
        "try: dk.use_backend('triton')\n"
        "except ValueError as error: print(error)\n"
    )
    # Without Triton, a build with CUDA kernels serves GPUs by them where they have the operator.
    floors = ["cuda"] if GPU["cuda"].installed() else []
    assert out.splitlines() == [
        repr({"cpu": "cpu", **dict.fromkeys(floors, "cuda"), "other": "reference"}),
        "8 cpu",
        "3 reference",
        "backend 'triton' is not in this build: triton is not installed; "
        f"it has {('reference', 'cpu', *floors)}",
    ]


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
